//! The documents speak of files that are there.

use std::path::Path;

#[test]
fn every_file_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for document in ["ARCHITECTURE.md", "README.md"] {
        let text = std::fs::read_to_string(root.join(document)).expect("the document");
        // What stands in single backquotes, with a folder before it and a source's ending.
        let named = text.split('`').skip(1).step_by(2).filter(|word| {
            word.contains('/') && [".rs", ".py", ".txt", ".md"].iter().any(|ending| word.ends_with(ending))
        });
        let absent: Vec<&str> = named.filter(|path| !root.join(path).is_file()).collect();
        assert!(absent.is_empty(), "{document} names what is not there: {absent:?}");
    }
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the document");
    assert!(
        architecture.contains("`control/store/src/lib.rs`"),
        "it names files in the way that is read here"
    );
}
