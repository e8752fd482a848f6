//! `tidegate blame`: what is answered for tables, and what is said of those that are none.

use std::fmt::Write as _;
use std::process::Output;

use super::harness::{Folder, tidegate};

fn path(folder: &Folder, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A hundred apps with two versions each, of which version 2 of one app sends ten times as much.
fn surge() -> String {
    let mut table = "real,predict,app,version\n".to_owned();
    for app in 0..100 {
        for version in 1..=2 {
            let observed = if (app, version) == (7, 2) {
                1000
            } else {
                99 + version
            };
            writeln!(table, "{observed},100,app{app},{version}").expect("text");
        }
    }
    table
}

#[test]
fn a_table_is_answered_on_one_line_of_json() {
    let folder = Folder::new();
    folder.write("surge.csv", &surge());
    folder.write("calm.csv", "a,real,b,predict\nx,1,y,1\nx,2,z,2\n");
    let (surge, calm) = (path(&folder, "surge.csv"), path(&folder, "calm.csv"));
    let output = tidegate(&["blame", "--json", &surge, &calm]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let lines: Vec<serde_json::Value> = said(&output)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let [first, second] = lines.as_slice() else {
        panic!("{} lines for two tables", lines.len());
    };
    assert_eq!(first["file"], surge.as_str());
    assert_eq!(first["localisable"], true);
    assert_eq!(first["causes"].as_array().map(Vec::len), Some(1));
    let cause = &first["causes"][0];
    assert_eq!(cause["source"]["app"], "app7");
    assert_eq!(cause["source"]["version"], "2");
    assert_eq!(cause["observed"], 1000.0);
    assert_eq!(cause["expected"], 100.0);
    assert!(cause["coverage"].as_f64().is_some_and(|share| share > 0.99));
    assert_eq!(cause["collateral"], 0.005);
    let rejected = first["rejected"].as_array().expect("a list");
    assert!(
        rejected
            .iter()
            .any(|other| other["source"]["app"] == "app7")
    );
    assert!(first["elapsed_ms"].is_number());
    assert_eq!(second["localisable"], false);
}

#[test]
fn people_read_the_source_and_why_not_another() {
    let folder = Folder::new();
    folder.write("surge.csv", &surge());
    let output = tidegate(&["blame", &path(&folder, "surge.csv")]);
    let text = said(&output);
    for part in [
        "1 cause",
        "1. app=app7, version=2",
        "observed 1000, expected 100",
        "not app=app7",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn what_is_wrong_with_a_table_is_told_with_its_place_and_the_way_out() {
    let cases = [
        ("", ":1:1: the table is empty"),
        ("a,predict\nx,1\n", ":1:1: there is no column `real`"),
        ("real,a\n1,x\n", ":1:1: there is no column `predict`"),
        ("real,predict\n1,1\n", ":1:1: there is no attribute"),
        (
            "real,predict,a,a\n1,1,x,y\n",
            ":1:16: there are two columns `a`",
        ),
        ("real,predict,\n1,1,x\n", ":1:14: the column has no name"),
        ("real,predict,a\n", ":2:1: there is no row"),
        ("real,predict,a\n1,NaN,x\n", ":2:3: `NaN` is not a count"),
        ("real,predict,a\ninf,1,x\n", ":2:1: `inf` is not a count"),
        (
            "real,predict,a\n1,1,x\n-1,1,y\n",
            ":3:1: `-1` is not a count",
        ),
        (
            "real,predict,a\n1,1e300,x\n",
            ":2:3: `1e300` is not a count",
        ),
        ("real,predict,a\n1,,x\n", ":2:3: `` is not a count"),
        (
            "real,predict,a\n1,1,x\n1,1\n",
            ":3:5: the row has 2 fields where",
        ),
        (
            "real,predict,a\n1,1,x,y\n",
            ":2:7: the row has 4 fields where",
        ),
        (
            "real,predict,a,b,c,d,e,f,g,h,i,j,k,l,m\n",
            ":1:1: there are 13 attributes, more than 12",
        ),
    ];
    let folder = Folder::new();
    for (number, (table, problem)) in cases.iter().enumerate() {
        let name = format!("{number}.csv");
        folder.write(&name, table);
        let table = path(&folder, &name);
        let output = tidegate(&["blame", "--json", &table]);
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(78), "{problem}: {text}");
        assert!(
            text.contains(&format!("{table}{problem}")),
            "{problem}: {text}"
        );
        assert!(said(&output).is_empty());
    }
}

#[test]
fn a_table_that_is_not_there_does_not_keep_the_others_from_being_answered() {
    let folder = Folder::new();
    folder.write("surge.csv", &surge());
    std::fs::write(
        folder.path().join("latin1.csv"),
        b"real,predict,a\n1,1,\xe9\n",
    )
    .expect("a folder of our own");
    let names = ["nowhere.csv", "rules", "latin1.csv", "surge.csv"].map(|name| path(&folder, name));
    let arguments: Vec<&str> = ["blame", "--json"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    let output = tidegate(&arguments);
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(said(&output).lines().count(), 1);
    let text = errors(&output);
    for part in [
        "nowhere.csv:1:1: cannot be read",
        "rules:1:1: is a folder",
        "latin1.csv:2:1: the row is not UTF-8",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn one_value_each_and_rows_of_the_same_values_are_no_error() {
    let folder = Folder::new();
    folder.write("one.csv", "real,predict,a\n5,5,x\n7,7,x\n");
    let output = tidegate(&["blame", "--json", &path(&folder, "one.csv")]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert!(said(&output).contains("\"localisable\":false"));
}

#[test]
fn a_file_without_line_ends_does_not_fill_the_memory() {
    let folder = Folder::new();
    folder.write(
        "endless.csv",
        &format!("real,predict,a\n1,1,\"{}", "x".repeat(3 << 20)),
    );
    let output = tidegate(&["blame", &path(&folder, "endless.csv")]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        errors(&output).contains("longer than 1048576 bytes"),
        "{}",
        errors(&output)
    );
}
