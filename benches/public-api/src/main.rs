//! Lists the public API: one line for each item that a user can name, in the words of its source, and
//! before them the other crates whose types it exposes.
//!
//! `pglock-public-api JSON SOURCE`: rustdoc's description of the crate, and the folder that its paths
//! start from. Reads only where items are and what belongs to what, since rustdoc changes the rest of
//! its format often; the signatures are cut out of the source.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// They are everywhere, and their types are nobody's choice.
const STANDARD_CRATES: [&str; 3] = ["alloc", "core", "std"];

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [description, source] = arguments.as_slice() else {
        eprintln!("usage: pglock-public-api JSON SOURCE");
        std::process::exit(2);
    };
    let text = fs::read_to_string(description).expect("rustdoc's description");
    let description = serde_json::from_str(&text).expect("JSON");
    let mut api = Api { description: &description, source, lines: vec![], crates: BTreeSet::new() };
    api.module("pglock", api.item(&description["root"]));
    print!("{}", api.list());
}

struct Api<'a> {
    description: &'a Value,
    source: &'a Path,
    lines: Vec<String>,
    crates: BTreeSet<String>,
}

impl<'a> Api<'a> {
    fn list(mut self) -> String {
        self.lines.sort();
        self.lines.dedup();
        let crates: Vec<_> = self.crates.into_iter().collect();
        let exposed = if crates.is_empty() { "none".to_owned() } else { crates.join(", ") };
        format!("Exposes types of: {exposed}\n\n{}\n", self.lines.join("\n"))
    }

    fn module(&mut self, path: &str, module: &'a Value) {
        for item in ids(&module["inner"]["module"]["items"]) {
            self.visit(path, self.item(item));
        }
    }

    fn visit(&mut self, parent: &str, item: &'a Value) {
        if item["visibility"] != "public" {
            return;
        }
        match kind(item) {
            "use" => self.reexport(parent, &item["inner"]["use"]),
            "module" => self.module(&format!("{parent}::{}", name(item)), item),
            _ => self.named(parent, name(item), item),
        }
    }

    fn reexport(&mut self, parent: &str, reexport: &'a Value) {
        let target = self.item(&reexport["id"]);
        match (target, &reexport["is_glob"]) {
            (Value::Null, _) => self.foreign(parent, reexport),
            (target, Value::Bool(true)) => self.module(parent, target),
            (target, _) => self.named(parent, reexport["name"].as_str().expect("a name"), target),
        }
    }

    /// What another crate defines and this one offers as its own.
    fn foreign(&mut self, parent: &str, reexport: &'a Value) {
        let source = reexport["source"].as_str().expect("a source");
        self.crates.extend(source.split("::").next().map(str::to_owned));
        self.lines.push(format!("{parent}: pub use {source}"));
    }

    /// A type, a trait, a function or a constant, under the name that a user knows it by.
    fn named(&mut self, parent: &str, name: &str, item: &'a Value) {
        let path = format!("{parent}::{name}");
        self.line(&path, item);
        let inner = &item["inner"][kind(item)];
        for variant in ids(&inner["variants"]) {
            self.line(&path, self.item(variant));
        }
        for member in ids(&inner["items"]).chain(fields(inner)) {
            let member = self.item(member);
            if kind(item) == "trait" || member["visibility"] == "public" {
                self.line(&path, member);
            }
        }
        for implementation in ids(&inner["impls"]) {
            self.implementation(&path, self.item(implementation));
        }
    }

    /// Not those that the compiler or another crate gives to every type.
    fn implementation(&mut self, path: &str, item: &'a Value) {
        let inner = &item["inner"]["impl"];
        let of_the_compiler = trait_name(&inner["trait"]).ends_with("StructuralPartialEq");
        if of_the_compiler || inner["is_synthetic"] == true || !inner["blanket_impl"].is_null() {
            return;
        }
        if inner["trait"].is_null() {
            for member in ids(&inner["items"]) {
                let member = self.item(member);
                if member["visibility"] == "public" {
                    self.line(path, member);
                }
            }
        } else {
            self.expose(&inner["trait"]);
            self.expose(&inner["for"]);
            let written = self.signature(item).filter(|text| text.starts_with("impl"));
            let derived = || format!("impl {} (derived)", trait_name(&inner["trait"]));
            self.lines.push(format!("{path}: {}", written.unwrap_or_else(derived)));
        }
    }

    fn line(&mut self, path: &str, item: &'a Value) {
        let inner = &item["inner"][kind(item)];
        self.expose(&inner["sig"]);
        self.expose(&inner["type"]);
        self.expose(&inner["generics"]);
        if kind(item) == "struct_field" {
            self.expose(inner);
        }
        let signature = self.signature(item).unwrap_or_else(|| name(item).to_owned());
        self.lines.push(format!("{path}: {signature}"));
    }

    /// Notes the crates of all types that are named anywhere in this part of the description.
    fn expose(&mut self, part: &'a Value) {
        match part {
            Value::Array(parts) => parts.iter().for_each(|part| self.expose(part)),
            Value::Object(parts) => {
                let of_crate = lookup(&self.description["paths"], &part["id"])["crate_id"].as_u64();
                if let Some(number @ 1..) = of_crate {
                    let external = &self.description["external_crates"][number.to_string()];
                    let name = external["name"].as_str().expect("a crate's name");
                    if !STANDARD_CRATES.contains(&name) {
                        self.crates.insert(name.to_owned());
                    }
                }
                parts.values().for_each(|part| self.expose(part));
            }
            _ => {}
        }
    }

    /// An item without its body, as its source has it, on one line.
    fn signature(&self, item: &Value) -> Option<String> {
        let span = &item["span"];
        let source = fs::read_to_string(self.source.join(span["filename"].as_str()?)).ok()?;
        let (first, column) = position(&span["begin"])?;
        let (last, _) = position(&span["end"])?;
        let mut lines = source.lines().skip(first - 1).take(last + 1 - first);
        let begin = lines.next()?.get(column - 1..)?;
        let code = lines.filter(|line| !line.trim_start().starts_with("//"));
        let text = code.fold(begin.to_owned(), |text, line| text + " " + line);
        let text = &text[..end_of_signature(&text, kind(item))];
        Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn item(&self, id: &Value) -> &'a Value {
        lookup(&self.description["index"], id)
    }
}

/// A body begins at a brace, the fields of a tuple at a parenthesis. A variant has its fields shown.
fn end_of_signature(text: &str, kind: &str) -> usize {
    let ends: &[char] = match kind {
        "variant" | "struct_field" => &[],
        "struct" => &['{', '(', ';'],
        _ => &['{', ';'],
    };
    text.find(ends).unwrap_or(text.len())
}

fn kind(item: &Value) -> &str {
    let inner = item["inner"].as_object();
    inner.and_then(|inner| inner.keys().next()).map_or("", String::as_str)
}

fn name(item: &Value) -> &str {
    item["name"].as_str().unwrap_or_default()
}

/// The trait's path was called its name in older versions of the format.
fn trait_name(path: &Value) -> &str {
    path["path"].as_str().or(path["name"].as_str()).unwrap_or_default()
}

fn ids(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten().filter(|id| !id.is_null())
}

/// Of a struct, whether its fields have names or numbers.
fn fields(inner: &Value) -> impl Iterator<Item = &Value> {
    ids(&inner["kind"]["plain"]["fields"]).chain(ids(&inner["kind"]["tuple"]))
}

/// An entry of one of the description's tables, whose keys are numbers written as text.
fn lookup<'a>(table: &'a Value, id: &Value) -> &'a Value {
    match id {
        Value::Number(id) => &table[id.to_string()],
        Value::String(id) => &table[id.as_str()],
        _ => &Value::Null,
    }
}

/// Line and column, each from 1.
fn position(of: &Value) -> Option<(usize, usize)> {
    let mut numbers = of.as_array()?.iter().map(|number| number.as_u64()?.try_into().ok());
    Some((numbers.next()??, numbers.next()??))
}
