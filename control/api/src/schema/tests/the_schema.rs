use super::*;

#[test]
fn every_kind_is_found_by_its_names() {
    let mut kinds = 0;
    for (gvk, ty) in Schema::get().kinds() {
        assert_eq!(Schema::get().kind(gvk.group, gvk.version, gvk.kind), Some(ty));
        assert_eq!(Schema::get().named(ty.name()), Some(ty));
        kinds += 1;
    }
    assert!(kinds > 150, "{kinds} kinds");
    assert_eq!(deployment().gvk().map(ToString::to_string).as_deref(), Some("apps/v1, Kind=Deployment"));
    assert_eq!(ty("", "Pod").gvk().map(Gvk::api_version).as_deref(), Some("v1"));
    assert!(Schema::get().kind("", "v1", "Deployment").is_none());
    assert!(deployment().has_status() && !ty("", "ConfigMap").has_status());
}

#[test]
fn fields_carry_how_they_are_merged() {
    let spec = Schema::get().named("core.v1.PodSpec").expect("PodSpec");
    let containers = spec.field("containers").expect("containers");
    assert!(containers.required);
    assert_eq!(containers.list, ListType::Map(vec!["name"]));
    assert_eq!(containers.patch.merge, Some("name"));
    let volumes = spec.field("volumes").expect("volumes");
    assert!(volumes.patch.retain_keys);
    let port = Schema::get().named("core.v1.ServicePort").expect("ServicePort");
    assert_eq!(port.field("protocol").and_then(|field| field.default.clone()), Some(json!("TCP")));
    assert!(spec.field("nothing").is_none());
}
