//! What became of the specs: ginkgo's report.

use std::path::Path;

use serde_json::Value;

/// Specs by what became of them; those that the focus left out are not in it.
#[derive(Debug, Default)]
pub struct Report {
    pub passed: usize,
    pub failed: Vec<String>,
    /// With what the suite says of it.
    pub skipped: Vec<(String, String)>,
}

impl Report {
    /// Reads `-ginkgo.json-report`.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        Ok(Self::of(&serde_json::from_slice(&std::fs::read(file)?)?))
    }

    fn of(suites: &Value) -> Self {
        let mut report = Self::default();
        let specs = suites.as_array().into_iter().flatten().flat_map(|suite| suite["SpecReports"].as_array());
        for spec in specs.flatten() {
            let message = spec["Failure"]["Message"].as_str().unwrap_or_default();
            let words = spec["ContainerHierarchyTexts"]
                .as_array()
                .into_iter()
                .flatten()
                .chain([&spec["LeafNodeText"]]);
            let name = words.filter_map(Value::as_str).collect::<Vec<_>>().join(" / ");
            match spec["State"].as_str() {
                Some("passed") if spec["LeafNodeType"] == "It" => report.passed += 1,
                Some("passed") => {} // what runs before or after all specs
                Some("skipped" | "pending") if message.is_empty() => {}
                Some("skipped") => report.skipped.push((name, message.to_owned())),
                _ => report.failed.push(name),
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn specs_that_the_focus_left_out_are_not_told_and_whatever_did_not_pass_failed() {
        let spec = |state: &str, name: &str, message: &str| {
            json!({"State": state, "LeafNodeType": "It", "ContainerHierarchyTexts": ["[k8s.io] A", "b"],
                "LeafNodeText": name, "Failure": {"Message": message}})
        };
        let report = Report::of(&json!([{"SpecReports": [
            spec("passed", "c", ""), spec("skipped", "d", ""), spec("skipped", "e", "no AppArmor"),
            spec("timedout", "f", "slow"), {"State": "passed", "LeafNodeType": "BeforeSuite"},
        ]}]));
        assert_eq!(report.passed, 1);
        assert_eq!(report.failed, ["[k8s.io] A / b / f"]);
        assert_eq!(report.skipped, [("[k8s.io] A / b / e".to_owned(), "no AppArmor".to_owned())]);
    }
}
