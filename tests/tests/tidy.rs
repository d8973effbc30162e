//! Rules of the tree that no compiler checks. Each failure names the file, the line and what to do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Longest source file, in lines; from 500 on look for the second concept in it.
const FILE_LINES_MAX: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
        .to_owned()
}

/// Every file below the directory with one of the extensions, build results left out, in a stable order.
fn files(directory: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory of the tree") {
            let entry = entry.expect("an entry of the directory");
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let kind = entry.file_type().expect("the kind of an entry");
            if kind.is_dir() && name != "target" && !name.starts_with('.') {
                waiting.push(path);
            } else if kind.is_file() && extensions.iter().any(|e| name.ends_with(e)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

fn short(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Fails with every finding on a line of its own.
fn none(findings: Vec<String>, what_to_do: &str) {
    assert!(
        findings.is_empty(),
        "{what_to_do}:\n  {}",
        findings.join("\n  ")
    );
}

/// Lines of source files, other than this one, that the predicate picks.
fn lines_that(picks: impl Fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for path in files(&root(), &[".rs"]) {
        if path.ends_with("tests/tests/tidy.rs") {
            continue;
        }
        for (index, line) in read(&path).lines().enumerate() {
            if picks(line) {
                findings.push(format!("{}:{}: {}", short(&path), index + 1, line.trim()));
            }
        }
    }
    findings
}

/// Names of all test functions: a function that follows an attribute whose path ends in `test`, also inside `proptest!`.
fn test_names() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in files(&root(), &[".rs"]) {
        let mut is_test = false;
        for line in read(&path).lines().map(str::trim) {
            if line.starts_with("#[test]") || line.contains("::test]") || line.contains("::test(") {
                is_test = true;
            }
            let function = line
                .strip_prefix("async fn ")
                .or_else(|| line.strip_prefix("fn "));
            if let Some(function) = function.filter(|_| is_test) {
                let name = function.split(['(', '<']).next().unwrap_or_default();
                names.insert(name.to_owned());
                is_test = false;
            }
        }
    }
    names
}

/// The texts between back quotes of a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn no_source_file_is_longer_than_800_lines() {
    let findings = files(&root(), &[".rs", ".sh"])
        .iter()
        .map(|path| (short(path), read(path).lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(path, lines)| format!("{path}: {lines} lines"))
        .collect();
    none(findings, "take the second concept out into its own file");
}

#[test]
fn modules_are_named_files_and_mod_rs_is_for_helpers_of_tests_only() {
    let findings = files(&root(), &["mod.rs"])
        .iter()
        .filter(|path| {
            path.ends_with("mod.rs") && !path.components().any(|c| c.as_os_str() == "tests")
        })
        .map(|path| short(path))
        .collect();
    none(findings, "call it NAME.rs beside the folder NAME/");
}

#[test]
fn every_todo_has_an_issue_number() {
    let findings = lines_that(|line| {
        let number_follows = |rest: &str| {
            rest.starts_with("(#") && rest[2..].starts_with(|c: char| c.is_ascii_digit())
        };
        ["TODO", "FIXME", "XXX"]
            .iter()
            .filter_map(|word| line.split_once(word))
            .any(|(before, rest)| {
                let is_word = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
                    && !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
                is_word && !number_follows(rest)
            })
    });
    none(findings, "write TODO(#NUMBER), with an issue's number");
}

#[test]
fn no_test_is_switched_off() {
    let findings = lines_that(|line| line.trim_start().starts_with("#[ignore"));
    none(findings, "mend the test or remove it");
}

#[test]
fn every_promise_names_tests_that_exist() {
    let names = test_names();
    let path = root().join("docs/SEMANTICS.md");
    let mut findings = Vec::new();
    let mut promises = 0;
    for (index, line) in read(&path).lines().enumerate() {
        let Some(tests) = line.trim_start().strip_prefix("Shown by:") else {
            continue;
        };
        promises += 1;
        if quoted(tests).next().is_none() {
            findings.push(format!("line {}: names no test", index + 1));
        }
        for test in quoted(tests) {
            let is_script = test.contains('/') && root().join(test).is_file();
            if !is_script && !names.contains(test) {
                findings.push(format!("line {}: there is no test {test}", index + 1));
            }
        }
    }
    assert!(promises > 0, "docs/SEMANTICS.md has no line \"Shown by:\"");
    none(
        findings,
        "docs/SEMANTICS.md: write the test, or name the one that shows the promise",
    );
}

#[test]
fn links_in_documents_lead_to_files_that_exist() {
    let mut findings = Vec::new();
    for path in files(&root(), &[".md"]) {
        let directory = path.parent().unwrap_or(Path::new("/"));
        for (index, line) in read(&path).lines().enumerate() {
            for link in line.split("](").skip(1).filter_map(|l| l.split(')').next()) {
                let file = link.split('#').next().unwrap_or_default();
                if !file.is_empty() && !file.contains("://") && !directory.join(file).exists() {
                    findings.push(format!("{}:{}: {link}", short(&path), index + 1));
                }
            }
        }
    }
    none(findings, "correct the link");
}

#[test]
fn every_configuration_key_is_documented() {
    let documented = read(&root().join("docs/CONFIGURATION.md"));
    let mut findings = Vec::new();
    let sources = files(&root(), &["config.rs"]);
    assert!(!sources.is_empty(), "no config.rs was found");
    for path in sources {
        let text = read(&path);
        let mut in_struct = false;
        for line in text
            .lines()
            .take_while(|line| !line.contains("#[cfg(test)]"))
        {
            if line.contains("struct ") && line.starts_with("pub") && line.ends_with('{') {
                in_struct = true;
            } else if line.starts_with('}') {
                in_struct = false;
            }
            let field = ["    pub ", "    pub(crate) "]
                .iter()
                .find_map(|visible| line.strip_prefix(visible))
                .filter(|_| in_struct);
            let Some((key, _)) = field.and_then(|field| field.split_once(": ")) else {
                continue;
            };
            if !documented.contains(&format!("`{key}`")) {
                findings.push(format!("{}: {key}", short(&path)));
            }
        }
    }
    none(findings, "describe the key in docs/CONFIGURATION.md");
}
