//! The generated files in the repository are those that the code generates.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "the whole file is a test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use tests::generated::{files, root};

#[test]
fn the_generated_files_are_current() {
    let files = files().unwrap();
    let stale: Vec<&PathBuf> = files
        .iter()
        .filter(|(path, content)| {
            fs::read_to_string(root().join(path)).ok().as_ref() != Some(content)
        })
        .map(|(path, _)| path)
        .collect();
    assert!(
        stale.is_empty(),
        "run `cargo run -p tests --bin generate` and commit {stale:?}"
    );
    let present: BTreeSet<PathBuf> = fs::read_dir(root().join("docs/schemas"))
        .unwrap()
        .map(|entry| PathBuf::from("docs/schemas").join(entry.unwrap().file_name()))
        .collect();
    let strays: Vec<&PathBuf> = present
        .iter()
        .filter(|path| !files.contains_key(*path))
        .collect();
    assert!(strays.is_empty(), "no type has these schemas: {strays:?}");
}

#[test]
fn every_reference_of_the_asyncapi_document_leads_somewhere() {
    let files = files().unwrap();
    let text = &files[&PathBuf::from("docs/asyncapi.yaml")];
    let document: serde_json::Value = serde_norway::from_str(text).unwrap();
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 50);
    for reference in references {
        match reference.strip_prefix('#') {
            Some(pointer) => assert!(document.pointer(pointer).is_some(), "{reference}"),
            None => {
                let path = PathBuf::from("docs").join(reference.trim_start_matches("./"));
                assert!(files.contains_key(&path), "{reference}");
            }
        }
    }
}

fn collect(value: &serde_json::Value, references: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                match (name.as_str(), value.as_str()) {
                    ("$ref", Some(reference)) => references.push(reference.to_owned()),
                    _ => collect(value, references),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|v| collect(v, references)),
        _ => {}
    }
}
