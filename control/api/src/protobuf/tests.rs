//! Against Kubernetes' own encoders, whose work is kept in `golden.gz` (control/api/schema/protobuf, `go run . golden`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::time::Instant;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::table::{Message, Shape, Table};
use super::{
    Error, Writer, decode, encode, encode_list, encode_metadata, envelope_end, envelope_start, frame,
};
use crate::kinds::Kinds;
use crate::schema::{self, Schema};

/// One object in both forms.
struct Specimen {
    kind: String,
    variant: String,
    wire: Vec<u8>,
    json: Value,
}

fn golden() -> Vec<Specimen> {
    let mut bytes = Vec::new();
    let packed: &[u8] = include_bytes!("golden.gz");
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    let mut rest = bytes.as_slice();
    let mut specimens = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let words: Vec<&str> = std::str::from_utf8(&rest[..end]).unwrap().split(' ').collect();
        let (wire, after) = rest[end + 1..].split_at(words[2].parse().unwrap());
        let (text, after) = after.split_at(words[3].parse().unwrap());
        specimens.push(Specimen {
            kind: words[0].to_owned(),
            variant: words[1].to_owned(),
            wire: wire.to_vec(),
            json: serde_json::from_slice(text).unwrap(),
        });
        rest = after;
    }
    specimens
}

/// An envelope of a kind around a message that the test writes.
fn enveloped(api_version: &str, kind: &str, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut out = Writer::default();
    envelope_end(&mut out);
    out.nested(super::RAW, write);
    envelope_start(&mut out, api_version, kind);
    out.finish().to_vec()
}

fn config_map(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    enveloped("v1", "ConfigMap", write)
}

fn read(body: &[u8]) -> Result<Value, Error> {
    decode(body, "v1", "ConfigMap")
}

#[test]
fn what_go_writes_is_read_as_go_reads_it() {
    let specimens = golden();
    assert!(specimens.len() > 150, "{}", specimens.len());
    for specimen in specimens {
        let found = decode(&specimen.wire, "", "").unwrap();
        assert_eq!(found, specimen.json, "{} {}", specimen.kind, specimen.variant);
    }
}

#[test]
fn what_is_written_is_what_go_writes() {
    for specimen in golden() {
        let found = encode(&specimen.json).unwrap();
        let what = format!("{} {}", specimen.kind, specimen.variant);
        if specimen.variant == "hollow" {
            // JSON does not tell a pointer to no time from no pointer.
            assert_eq!(without_null(decode(&found, "", "").unwrap()), without_null(specimen.json), "{what}");
            continue;
        }
        assert!(found == specimen.wire, "{what}: {:?}, not {:?}", decode(&found, "", ""), specimen.json);
    }
}

fn without_null(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_null(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_null).collect(),
        other => other,
    }
}

#[test]
fn every_kind_has_the_fields_of_its_schema() {
    let kinds = Kinds::new(Vec::new()).unwrap();
    let mut seen = BTreeSet::new();
    // Measurements are told in JSON alone, which every client takes that asks for them.
    for kind in kinds.rows().iter().filter(|kind| kind.usage.is_none()) {
        let message = Table::get().kind(&kind.api_version(), &kind.kind);
        let message = message.unwrap_or_else(|| panic!("{kind:?} has no protobuf form"));
        same_fields(kind.ty(), message, &mut seen);
    }
    let others = [
        ("meta.v1.DeleteOptions", "v1", "DeleteOptions"),
        ("authentication.v1.TokenRequest", "authentication.k8s.io/v1", "TokenRequest"),
        ("policy.v1.Eviction", "policy/v1", "Eviction"),
        ("core.v1.Binding", "v1", "Binding"),
        ("autoscaling.v1.Scale", "autoscaling/v1", "Scale"),
        ("meta.v1.Status", "v1", "Status"),
    ];
    for (name, api_version, kind) in others {
        let ty = Schema::get().named(name).unwrap();
        same_fields(ty, Table::get().kind(api_version, kind).unwrap(), &mut seen);
    }
    assert!(seen.len() > 250, "{}", seen.len());
}

/// The fields that stand in an object, also those of messages that JSON does not show.
fn shown(message: &'static Message) -> BTreeMap<&'static str, &'static Shape> {
    let fields = message.fields().iter();
    fields
        .flat_map(|field| match &field.shape {
            Shape::Message(inner) if field.inline => shown(Message::at(*inner)).into_iter().collect(),
            shape => vec![(field.name, shape)],
        })
        .collect()
}

fn same_fields(ty: schema::Type, message: &'static Message, seen: &mut BTreeSet<&'static str>) {
    if !seen.insert(ty.name()) {
        return;
    }
    let shown = shown(message);
    let named = ty.fields().iter().map(|field| field.name);
    let named: BTreeSet<_> = named.filter(|name| !matches!(*name, "apiVersion" | "kind")).collect();
    let have: BTreeSet<_> =
        shown.keys().copied().filter(|name| !matches!(*name, "kind" | "apiVersion")).collect();
    assert_eq!(have, named, "{}", ty.name());
    for field in ty.fields() {
        if let Some(shape) = shown.get(field.name) {
            same_shapes(&field.shape, shape, ty.name(), field.name, seen);
        }
    }
}

fn same_shapes(
    wanted: &'static schema::Shape,
    found: &'static Shape,
    ty: &str,
    name: &str,
    seen: &mut BTreeSet<&'static str>,
) {
    use schema::Shape as Wanted;
    match (wanted, found) {
        (Wanted::String, Shape::String)
        | (Wanted::Bool, Shape::Bool)
        | (Wanted::Int32, Shape::Int32)
        | (Wanted::Int64, Shape::Int64)
        | (Wanted::Bytes, Shape::Bytes)
        | (Wanted::Quantity, Shape::Quantity)
        | (Wanted::IntOrString, Shape::IntOrString)
        | (Wanted::Time, Shape::Time)
        | (Wanted::MicroTime, Shape::MicroTime)
        | (Wanted::Any | Wanted::Object, Shape::Json) => {}
        (Wanted::List(item), Shape::Items) => assert_eq!(**item, Wanted::String, "{ty}.{name}"),
        (Wanted::List(wanted), Shape::List(found)) | (Wanted::Map(wanted), Shape::Map(found)) => {
            same_shapes(wanted, found, ty, name, seen);
        }
        (Wanted::Struct(_), Shape::Message(at)) => {
            same_fields(wanted.as_type().unwrap(), Message::at(*at), seen);
        }
        _ => panic!("{ty}.{name} is {wanted:?} in the schema and {found:?} in protobuf"),
    }
}

#[test]
fn no_message_holds_itself_or_a_name_twice() {
    /// The names in an object, twice if two fields would meet in one place.
    fn names(message: &'static Message) -> Vec<&'static str> {
        let fields = message.fields().iter();
        fields
            .flat_map(|field| match &field.shape {
                Shape::Message(at) if field.inline => names(Message::at(*at)),
                _ => vec![field.name],
            })
            .collect()
    }
    fn depth(at: usize, above: &mut Vec<usize>) -> usize {
        assert!(!above.contains(&at), "a message holds itself, so hostile ones nest without end");
        above.push(at);
        let inner = Message::at(at).fields().iter().filter_map(|field| inner(&field.shape));
        let deepest = inner.map(|inner| depth(inner, above)).max().unwrap_or(0);
        above.pop();
        deepest + 1
    }
    fn inner(shape: &Shape) -> Option<usize> {
        match shape {
            Shape::Message(at) => Some(*at),
            Shape::List(item) | Shape::Map(item) => inner(item),
            _ => None,
        }
    }
    for at in 0..Table::get().messages().len() {
        let names = names(Message::at(at));
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    }
    let deepest = (0..Table::get().messages().len()).map(|at| depth(at, &mut Vec::new())).max();
    assert!(deepest < Some(20), "{deepest:?}");
}

#[test]
fn fields_come_in_any_order_and_the_last_of_a_plain_one_counts() {
    let body = config_map(|out| {
        out.nested(1, |out| out.bytes(1, b"last"));
        out.varint(4, 1); // immutable
        out.nested(2, |out| {
            out.bytes(1, b"key");
            out.bytes(2, b"value");
        });
        out.nested(1, |out| {
            out.bytes(1, b"first");
            out.bytes(3, b"space");
        });
    });
    let found = read(&body).unwrap();
    assert_eq!(found["metadata"], json!({"name": "last", "namespace": "space"}));
    assert_eq!((&found["data"], &found["immutable"]), (&json!({"key": "value"}), &json!(true)));
}

#[test]
fn unknown_fields_are_passed_over() {
    let body = config_map(|out| {
        out.raw(&[0xfc, 0x3f]); // end of the group 1023
        out.raw(&[0xfb, 0x01, 0xf8, 0x01, 0x05, 0xfc, 0x01]); // a group 31 in it with a number in it
        out.raw(&[0xfb, 0x3f]); // start of it
        out.raw(&[0xfd, 0x3f, 1, 2, 3, 4]);
        out.raw(&[0xf9, 0x3f, 1, 2, 3, 4, 5, 6, 7, 8]);
        out.bytes(900, b"from a newer version");
        out.varint(901, u64::MAX);
    });
    assert_eq!(read(&body), Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}})));
}

#[test]
fn kinds_of_every_group_go_by_any_version() {
    let body = enveloped("apps/v1", "DeleteOptions", |out| out.varint(1, 0));
    let found = decode(&body, "v1", "DeleteOptions").unwrap();
    assert_eq!((&found["apiVersion"], &found["gracePeriodSeconds"]), (&json!("apps/v1"), &json!(0)));
    let unnamed = enveloped("", "", |out| out.varint(1, 30));
    assert_eq!(decode(&unnamed, "v1", "DeleteOptions").unwrap()["gracePeriodSeconds"], json!(30));
    let unknown = Error::Unregistered { kind: "Pod".to_owned(), api_version: "apps/v1".to_owned() };
    assert_eq!(unknown.to_string(), "no kind \"Pod\" is registered for version \"apps/v1\"");
    assert_eq!(decode(&enveloped("apps/v1", "Pod", |_| {}), "v1", "Pod"), Err(unknown));
}

/// A Pod whose field `number` holds what the test writes.
fn value_of(pointer: &str, write: impl FnOnce(&mut Writer)) -> Result<Value, Error> {
    let pod = decode(&enveloped("v1", "Pod", write), "v1", "Pod")?;
    Ok(pod.pointer(pointer).cloned().unwrap_or(json!("absent")))
}

#[test]
fn times_are_whole_seconds_and_empty_ones_are_none() {
    let deleted = |write: &dyn Fn(&mut Writer)| {
        value_of("/metadata/deletionTimestamp", |out| out.nested(1, |out| out.nested(9, |out| write(out))))
    };
    assert_eq!(deleted(&|_| {}), Ok(Value::Null));
    let seconds = |out: &mut Writer| {
        out.varint(2, 999);
        out.varint(1, 1_700_000_000);
    };
    assert_eq!(deleted(&seconds), Ok(json!("2023-11-14T22:13:20Z")));
    assert_eq!(deleted(&|out| out.varint(1, -1i64 as u64)), Ok(json!("1969-12-31T23:59:59Z")));
    for far in [i64::MAX, i64::MIN, 253_402_300_800, -62_167_219_201] {
        let refused = deleted(&|out| out.varint(1, far as u64));
        assert_eq!(refused, Err(Error::Value("deletionTimestamp", "time")), "{far}");
    }
}

#[test]
fn times_of_leases_have_microseconds() {
    let lease = |value: &str| json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {}, "spec": {"renewTime": value}});
    let cases = [
        ("2026-01-02T03:04:05.123456789Z", "2026-01-02T03:04:05.123456Z"),
        ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.500000Z"),
        ("2026-01-02T05:04:05+02:00", "2026-01-02T03:04:05.000000Z"),
    ];
    for (given, wanted) in cases {
        assert_eq!(decode(&encode(&lease(given)).unwrap(), "", "").unwrap(), lease(wanted), "{given}");
    }
}

#[test]
fn numbers_may_be_packed_and_are_cut_as_in_go() {
    let groups = |write: &dyn Fn(&mut Writer)| {
        let path = "/spec/securityContext/supplementalGroups";
        value_of(path, |out| out.nested(2, |out| out.nested(14, |out| write(out))))
    };
    assert_eq!(groups(&|out| out.bytes(4, &[1, 0x96, 1])), Ok(json!([1, 150])));
    assert_eq!(groups(&|out| out.varint(4, -3i64 as u64)), Ok(json!([-3])));
    let priority = |number| value_of("/spec/priority", |out| out.nested(2, |out| out.varint(25, number)));
    assert_eq!(priority(-5i64 as u64), Ok(json!(-5)));
    assert_eq!(priority(1 << 32), Ok(json!(0)));
}

#[test]
fn empty_values_stay_where_go_has_pointers() {
    let grace = value_of("/spec/terminationGracePeriodSeconds", |out| out.nested(2, |out| out.varint(4, 0)));
    assert_eq!(grace, Ok(json!(0)));
    let hostname = value_of("/spec/hostname", |out| out.nested(2, |out| out.bytes(16, b"")));
    assert_eq!(hostname, Ok(json!("absent")));
}

#[test]
fn bytes_are_base64_in_json() {
    let secret = enveloped("v1", "Secret", |out| {
        out.nested(2, |out| out.bytes(1, b"empty"));
        out.nested(2, |out| {
            out.bytes(2, &[0, 255, 1]);
            out.bytes(1, b"key");
        });
    });
    let secret = decode(&secret, "v1", "Secret").unwrap();
    assert_eq!(secret["data"], json!({"empty": "", "key": "AP8B"}));
    assert_eq!(decode(&encode(&secret).unwrap(), "", "").unwrap(), secret);
}

#[test]
fn amounts_and_ports_are_of_either_sort() {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {}, "status": {"loadBalancer": {}}, "spec": {
        "ports": [
            {"port": 80, "targetPort": "web"}, {"port": -1, "targetPort": 8080}, {"port": 1, "targetPort": 0},
        ],
    }});
    assert_eq!(decode(&encode(&service).unwrap(), "", "").unwrap(), service);
    let port = |type_| {
        let body = enveloped("v1", "Service", |out| {
            out.nested(2, |out| out.nested(1, |out| out.nested(4, |out| out.varint(1, type_))));
        });
        decode(&body, "v1", "Service").map(|service| service["spec"]["ports"][0]["targetPort"].clone())
    };
    assert_eq!(port(0), Ok(json!(0)));
    assert_eq!(port(1), Ok(json!("")));
    assert_eq!(port(2), Err(Error::Value("targetPort", "IntOrString")));
}

#[test]
fn json_within_messages_is_json() {
    let revision = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {}, "revision": 7,
        "data": {"spec": {"a": [1, null, "x"]}}});
    assert_eq!(decode(&encode(&revision).unwrap(), "", "").unwrap(), revision);
    let broken =
        enveloped("apps/v1", "ControllerRevision", |out| out.nested(2, |out| out.bytes(1, b"{\"a\":")));
    assert_eq!(decode(&broken, "", ""), Err(Error::Value("data", "JSON")));
    let nested = |depth: usize| {
        let text = "[".repeat(depth) + &"]".repeat(depth);
        enveloped("apps/v1", "ControllerRevision", |out| out.nested(2, |out| out.bytes(1, text.as_bytes())))
    };
    let deepest = decode(&nested(100), "", "").unwrap();
    // What is stored has to be read again.
    assert_eq!(serde_json::from_str::<Value>(&deepest.to_string()).unwrap(), deepest);
    for depth in [101, 120, 100_000] {
        assert_eq!(decode(&nested(depth), "", ""), Err(Error::Value("data", "JSON")), "{depth}");
    }
}

#[test]
fn a_list_is_the_envelope_of_its_items_together() {
    let items: Vec<Value> = (0..3000)
        .map(|n| json!({"metadata": {"name": format!("c{n}")}, "data": {"k": "v".repeat(50)}}))
        .collect();
    let metadata = json!({"resourceVersion": "12", "continue": "x", "remainingItemCount": 0});
    let pieces = encode_list("v1", "ConfigMapList", &metadata, items.iter().cloned()).unwrap();
    assert!(pieces.len() > 4, "{}", pieces.len());
    let list = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": metadata, "items": items});
    assert_eq!(pieces.concat(), encode(&list).unwrap());
    let none = encode_list("v1", "ConfigMapList", &json!({}), std::iter::empty()).unwrap();
    let none = decode(&none.concat(), "", "").unwrap();
    assert_eq!(none["items"], Value::Null, "as Go reads it");
    assert_eq!(encode_list("v1", "TableList", &metadata, items.into_iter()), None);
}

#[test]
fn a_frame_tells_its_length() {
    let frame = frame("ADDED", b"k8s\0...");
    let wanted = [&[0, 0, 0, 18][..], b"\x0a\x05ADDED\x12\x09\x0a\x07k8s\0..."].concat();
    assert_eq!(frame, wanted);
    let alone =
        encode_metadata(&json!({"kind": "Pod", "metadata": {"name": "x"}, "spec": {"nodeName": "n"}}));
    let wanted =
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "x"}});
    assert_eq!(decode(&alone, "", ""), Ok(wanted));
}

#[test]
fn bytes_that_are_no_object_are_refused_in_words() {
    let cases: [(&[u8], &str); 7] = [
        (b"", "empty data"),
        (
            b"{\"kind\":\"ConfigMap\"}",
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
        ),
        (b"k8s\0\x12", "unexpected EOF"),
        (b"k8s\0\x12\x05abc", "unexpected EOF"),
        (b"k8s\0\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "proto: integer overflow"),
        (b"k8s\0\x12\x02\x0a\x7f", "unexpected EOF"),
        (b"k8s\0\x12\x02\x08\x01", "proto: wrong wireType for field metadata"),
    ];
    for (body, why) in cases {
        assert_eq!(read(body).unwrap_err().to_string(), why, "{body:?}");
    }
    let zipped = b"k8s\0\x1a\x04gzip";
    assert_eq!(read(zipped), Err(Error::Encoding("gzip".to_owned())));
    assert_eq!(read(b"k8s\0\x1b\x1c\x0c"), Err(Error::Group));
    assert_eq!(read(b"k8s\0\x00\x00"), Err(Error::Tag(0)));
}

#[test]
fn small_messages_do_not_become_large_objects() {
    let within = |time: Instant| assert!(time.elapsed().as_secs() < 20, "{:?}", time.elapsed());
    let many = (3 << 20) / 2 - 64;
    let containers = enveloped("v1", "Pod", |out| out.bytes(2, &[0x12, 0].repeat(many)));
    let started = Instant::now();
    assert_eq!(decode(&containers, "v1", "Pod"), Err(Error::TooLarge));
    within(started);
    // The same field again and again is merged, not added.
    let specs = enveloped("v1", "Pod", |out| out.raw(&[0x12, 0].repeat(many)));
    let started = Instant::now();
    assert_eq!(decode(&specs, "v1", "Pod").unwrap()["spec"], json!({"containers": null}));
    within(started);
    let groups = config_map(|out| out.raw(&[0x2b].repeat(3 << 20)));
    assert_eq!(read(&groups), Err(Error::Cut));
}

proptest! {
    #[test]
    fn no_bytes_are_a_danger(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for (api_version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "Status")] {
            let body = enveloped(api_version, kind, |out| out.raw(&bytes));
            if let Ok(object) = decode(&body, "", "") {
                // What was read can be written, and is read the same.
                prop_assert_eq!(decode(&encode(&object).unwrap(), "", "").map(without_null), Ok(without_null(object)));
            }
        }
        let _ = decode(&[b"k8s\0", &bytes[..]].concat(), "v1", "Pod");
    }

    #[test]
    fn no_change_to_a_message_is_a_danger(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        end in any::<prop::sample::Index>(),
    ) {
        use std::sync::LazyLock;
        static GOLDEN: LazyLock<Vec<Specimen>> = LazyLock::new(golden);
        let mut wire = which.get(&GOLDEN).wire.clone();
        let cut = end.index(wire.len() * 2);
        wire.truncate(cut.max(5));
        for (at, byte) in changes {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        if let Ok(object) = decode(&wire, "v1", "Pod") {
            let _ = encode(&object);
        }
    }
}
