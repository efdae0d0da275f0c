//! The table of numbered statements is whole, and the tests it names are there and say which statement they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::tidy::root;

/// The statements there are: the document, the number's beginning, and how many there are of it.
const STATEMENTS: [(&str, &str, u32); 6] = [
    ("Rollouts", "5.", 7),
    ("Rollouts", "11.", 28),
    ("Rollouts", "12.", 4),
    ("Rollouts", "13.", 30),
    ("Objective", "", 26),
    ("Field", "", 22),
];

/// A row of the table: a statement's name, and the tests that hold it, each with its file.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    name: String,
    statement: String,
    tests: Vec<(String, String)>,
}

fn page() -> String {
    let path = root().join("crates/turnwise/docs/statements.md");
    fs::read_to_string(path).expect("the page is there")
}

fn rows(page: &str) -> Vec<Row> {
    let is_row =
        |line: &&str| STATEMENTS.iter().any(|(name, ..)| line.starts_with(&format!("| {name} ")));
    page.lines().filter(is_row).map(row).collect()
}

fn row(line: &str) -> Row {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [name, statement, tests] = cells[..] else { panic!("three cells are a row: {line}") };
    let test = |test: &str| {
        let (path, test) = test.trim().trim_matches('`').split_once("::")?;
        Some((path.to_owned(), test.to_owned()))
    };
    let tests = tests.split("<br>").map(|one| test(one).unwrap_or_else(|| panic!("{line}: {one}")));
    Row { name: name.to_owned(), statement: statement.to_owned(), tests: tests.collect() }
}

fn expected() -> Vec<String> {
    let names = |(document, prefix, n): &(&str, &str, u32)| -> Vec<String> {
        (1..=*n).map(|number| format!("{document} {prefix}{number}")).collect()
    };
    STATEMENTS.iter().flat_map(names).collect()
}

/// The names of the statements that the comment over a test mentions; `None` where there is no such test.
fn mentioned(source: &str, test: &str) -> Option<BTreeSet<String>> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let head = format!("fn {test}(");
    let is_head =
        |line: &&str| line.starts_with(&head) || line.starts_with(&format!("async {head}"));
    let at = lines.iter().position(is_head)?;
    let above = lines[..at].iter().rev();
    let above: Vec<&str> = above
        .take_while(|line| line.starts_with("//") || line.starts_with("#["))
        .copied()
        .collect();
    let is_test =
        above.iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
    let comment = above.into_iter().rev().filter(|line| line.starts_with("//"));
    is_test.then(|| statements_in(&comment.collect::<Vec<_>>().join(" ")))
}

fn statements_in(comment: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut document = None;
    for spelt in comment.split_whitespace() {
        let word = spelt.trim_matches(|letter: char| !letter.is_alphanumeric());
        match (word, document) {
            ("Rollouts" | "Objective" | "Field", _) => document = Some(word),
            (number, Some(name)) => drop(found.insert(format!("{name} {number}"))),
            (_, None) => {}
        }
        // A colon ends the numbers, and the reason begins.
        if spelt.ends_with(':') {
            document = None;
        }
    }
    found
}

// Every number has its row, once and in order, and every row says something.
#[test]
fn every_numbered_statement_is_in_the_table() {
    let rows = rows(&page());
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, expected());
    for row in &rows {
        assert!(row.statement.len() > 20 && !row.tests.is_empty(), "{row:?}");
    }
}

// Each named test exists, and at least one of each row says in its comment which statement it holds.
#[test]
fn every_statement_has_a_test_that_names_it() {
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in rows(&page()) {
        let mut is_named = false;
        for (path, test) in &row.tests {
            let read = || fs::read_to_string(root().join(path)).unwrap_or_default();
            let source = sources.entry(path.clone()).or_insert_with(read);
            match mentioned(source, test) {
                Some(names) => is_named |= names.contains(&row.name),
                None => wrong.push(format!("{}: no test {path}::{test}", row.name)),
            }
        }
        if !is_named {
            wrong.push(format!("{}: none of its tests names it", row.name));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

/// The readers themselves.
#[test]
fn rows_and_comments_are_read_as_they_are_written() {
    let table = "| | |\n| Rollouts 13.4 | Cut anywhere. | `a/b.rs::one`<br>`c.rs::two` |\n| other | x | y |\n";
    let test = |path: &str, test: &str| (path.to_owned(), test.to_owned());
    let expected = Row {
        name: "Rollouts 13.4".to_owned(),
        statement: "Cut anywhere.".to_owned(),
        tests: vec![test("a/b.rs", "one"), test("c.rs", "two")],
    };
    assert_eq!(rows(table), [expected]);
    let body = "#[test]\nfn one() {}\nfn two() {}\n";
    let source = format!("// Rollouts 13.4 (5.1), and 13.40; Objective 9: 7 bounds\n{body}");
    let names = mentioned(&source, "one").expect("it is a test");
    for name in ["Rollouts 13.4", "Rollouts 5.1", "Rollouts 13.40", "Objective 9"] {
        assert!(names.contains(name), "{names:?}");
    }
    for name in ["Rollouts 9", "Rollouts 13.41", "Objective 7"] {
        assert!(!names.contains(name), "{names:?}");
    }
    assert_eq!(mentioned(&source, "two"), None, "it is none");
    assert_eq!(mentioned(&source, "three"), None);
}
