//! The figures of `./dev shape`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::cycles::{self, Cycle};
use crate::rules::{RULES, Rule};
use crate::{File, Workspace};

/// How many of a room's functions, and of all structs, are worth a line.
const LONGEST_COUNT: usize = 3;
const STRUCT_COUNT: usize = 12;

/// Everything that `./dev shape` tells.
#[derive(Debug, Serialize)]
pub struct Report {
    /// By name.
    pub rooms: Vec<Room>,
    /// Rooms of the supervisor that name each other in a circle.
    pub room_cycles: Vec<Cycle>,
    /// Files of one room that name or call each other in a circle.
    pub file_cycles: Vec<Cycle>,
    /// Methods of one type that call each other in a circle.
    pub method_cycles: Vec<Cycle>,
    /// Methods that call themselves, which is no circle.
    pub recursive_methods: Vec<String>,
    /// `impl` blocks outside of the file that defines their type.
    pub impls_elsewhere: Vec<ImplsElsewhere>,
    /// The structs with the most fields.
    pub fields: Vec<Fields>,
    /// Breaches of the house rules, by rule; `unsafe` outside of ffi is one. Known ones are among them.
    pub offences: BTreeMap<&'static str, Vec<String>>,
    /// Names that several types of the supervisor have.
    pub names_shared_in_supervisor: BTreeMap<String, Vec<String>>,
    /// Names that types of several crates have.
    pub names_shared_across_crates: BTreeMap<String, Vec<String>>,
}

/// A folder of the supervisor or a package.
#[derive(Debug, Default, Serialize)]
pub struct Room {
    /// `supervisor/scheduler`, `proto/kit`.
    pub name: String,
    /// Number of files.
    pub files: usize,
    /// Lines of all files.
    pub lines: usize,
    /// Lines without tests.
    pub lines_without_tests: usize,
    /// Lines of code: without tests, comments and blank lines.
    pub code: usize,
    /// Its longest functions, tests left out.
    pub longest: Vec<Long>,
}

/// A long function.
#[derive(Debug, Serialize)]
pub struct Long {
    /// From signature to closing brace.
    pub lines: usize,
    /// `Type::method`.
    pub function: String,
    /// File and line.
    pub at: String,
}

/// `impl` blocks of one type outside of its file.
#[derive(Debug, Serialize)]
pub struct ImplsElsewhere {
    /// The type's name.
    #[serde(rename = "type")]
    pub name: String,
    /// The file that defines it.
    pub defined: String,
    /// Where the blocks are.
    pub blocks: Vec<String>,
}

/// How many fields a struct has.
#[derive(Debug, Serialize)]
pub struct Fields {
    /// Their number.
    pub count: usize,
    /// The struct's name.
    #[serde(rename = "struct")]
    pub name: String,
    /// File and line.
    pub at: String,
}

impl Report {
    /// Takes all figures.
    #[must_use]
    pub fn of(workspace: &Workspace) -> Self {
        Self {
            rooms: rooms(workspace),
            room_cycles: cycles::of_rooms(workspace),
            file_cycles: cycles::of_files(workspace),
            method_cycles: cycles::of_methods(workspace),
            recursive_methods: cycles::recursions(workspace),
            impls_elsewhere: impls_elsewhere(workspace),
            fields: fields(workspace),
            offences: offences(workspace),
            names_shared_in_supervisor: shared_names(workspace, |file| file.package() == "supervisor", |_| ""),
            names_shared_across_crates: shared_names(workspace, |_| true, File::package),
        }
    }

    /// The figures of one room.
    #[must_use]
    pub fn room(&self, name: &str) -> Option<&Room> {
        self.rooms.iter().find(|room| room.name == name)
    }

    /// Fields of the struct of this name under this folder.
    #[must_use]
    pub fn field_count(&self, folder: &str, name: &str) -> Option<usize> {
        self.fields.iter().find(|it| it.name == name && it.at.starts_with(folder)).map(|it| it.count)
    }

    /// `impl` blocks of this type outside of the file that defines it.
    #[must_use]
    pub fn impl_count_elsewhere(&self, name: &str) -> usize {
        self.impls_elsewhere.iter().filter(|it| it.name == name).map(|it| it.blocks.len()).sum()
    }

    /// For a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::from("Lines             files    all  no tests   code   longest functions (no tests)\n");
        for room in &self.rooms {
            let Room { name, files, lines, lines_without_tests, code, .. } = room;
            let _ = write!(out, "{name:<20}{files:>3}{lines:>7}{lines_without_tests:>10}{code:>7}");
            let longest: Vec<String> =
                room.longest.iter().take(LONGEST_COUNT).map(|it| format!("{} {}", it.lines, it.function)).collect();
            let _ = writeln!(out, "   {}", longest.join(", "));
        }
        cycles_text(&mut out, "Cycles of rooms", &self.room_cycles);
        cycles_text(&mut out, "Cycles of files inside a room, calls through `self` included", &self.file_cycles);
        cycles_text(&mut out, "Cycles of methods of one type", &self.method_cycles);
        list(&mut out, "Methods that call themselves", &self.recursive_methods);
        let blocks = |it: &ImplsElsewhere| {
            format!("{} `impl {}` outside {}: {}", it.blocks.len(), it.name, it.defined, it.blocks.join(" "))
        };
        list(
            &mut out,
            "`impl` blocks away from their type",
            &self.impls_elsewhere.iter().map(blocks).collect::<Vec<_>>(),
        );
        let most = self.fields.iter().take(STRUCT_COUNT);
        let most: Vec<String> = most.map(|it| format!("{:>3} {} ({})", it.count, it.name, it.at)).collect();
        list(&mut out, "Structs with the most fields", &most);
        for (rule, places) in &self.offences {
            list(&mut out, &format!("Rule ({}): {rule}", places.len()), places);
        }
        let places = |(name, places): (&String, &Vec<String>)| format!("{name}: {}", places.join(" "));
        let supervisor: Vec<String> = self.names_shared_in_supervisor.iter().map(places).collect();
        list(&mut out, "Types of one name in the supervisor", &supervisor);
        let crates: Vec<String> = self.names_shared_across_crates.iter().map(places).collect();
        list(&mut out, "Types of one name across crates", &crates);
        out
    }
}

fn list(out: &mut String, title: &str, lines: &[String]) {
    let _ = writeln!(out, "\n{title}: {}", if lines.is_empty() { "none" } else { "" });
    lines.iter().for_each(|line| {
        let _ = writeln!(out, "  {line}");
    });
}

fn cycles_text(out: &mut String, title: &str, cycles: &[Cycle]) {
    let lines = cycles.iter().flat_map(|cycle| {
        let head = format!("{} in {} files: {}", cycle.members.len(), cycle.file_count, cycle.members.join(", "));
        [head].into_iter().chain(cycle.shortest.iter().map(|step| format!("    {step}")))
    });
    list(out, &format!("{title} ({})", cycles.len()), &lines.collect::<Vec<_>>());
}

fn rooms(workspace: &Workspace) -> Vec<Room> {
    let mut rooms: BTreeMap<String, Room> = BTreeMap::new();
    for file in &workspace.files {
        let room = rooms.entry(file.room()).or_default();
        room.name = file.room();
        room.files += 1;
        room.lines += file.line_count;
        room.lines_without_tests += file.product_line_count();
        room.code += file.code_line_count();
        let product = file.functions.iter().filter(|function| !file.in_tests(*function.lines.start()));
        room.longest.extend(product.map(|function| Long {
            lines: function.line_count(),
            function: function.title(),
            at: format!("{}:{}", file.path, function.lines.start()),
        }));
    }
    for room in rooms.values_mut() {
        room.longest.sort_by(|a, b| b.lines.cmp(&a.lines).then_with(|| a.at.cmp(&b.at)));
        room.longest.truncate(10);
    }
    rooms.into_values().collect()
}

/// `impl` blocks without a trait that stand in another file than their type, tests left out.
#[must_use]
pub fn impls_elsewhere(workspace: &Workspace) -> Vec<ImplsElsewhere> {
    let mut found: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for file in &workspace.files {
        for block in file.impls.iter().filter(|block| !file.in_tests(block.line)) {
            let Some(defined) = workspace.definition(file, &block.name).filter(|other| other.path != file.path) else {
                continue;
            };
            let key = (crate::last(&block.name).to_owned(), defined.path.clone());
            found.entry(key).or_default().push(format!("{}:{}", file.path, block.line));
        }
    }
    found.into_iter().map(|((name, defined), blocks)| ImplsElsewhere { name, defined, blocks }).collect()
}

fn offences(workspace: &Workspace) -> BTreeMap<&'static str, Vec<String>> {
    let places = |rule: &Rule| rule.offences(workspace).iter().map(ToString::to_string).collect();
    RULES.iter().map(|rule| (rule.says, places(rule))).collect()
}

fn fields(workspace: &Workspace) -> Vec<Fields> {
    let product = workspace.files.iter().flat_map(|file| {
        let types = file.types.iter().filter(|found| found.kind == "struct" && !file.in_tests(found.line));
        types.map(|found| Fields {
            count: found.field_count,
            name: found.name.clone(),
            at: format!("{}:{}", file.path, found.line),
        })
    });
    let mut all: Vec<Fields> = product.collect();
    all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.at.cmp(&b.at)));
    all
}

/// Names of types that are defined more than once in these files; with groups, in more than one group. Tests and types
/// inside of functions are left out.
#[must_use]
pub fn shared_names(
    workspace: &Workspace,
    is_meant: impl Fn(&File) -> bool,
    group: impl Fn(&File) -> &str,
) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for file in workspace.files.iter().filter(|file| is_meant(file)) {
        for own in file.types.iter().filter(|own| !own.local && !file.in_tests(own.line)) {
            let place = format!("{}:{}", file.path, own.line);
            found.entry(own.name.clone()).or_default().push((group(file).to_owned(), place));
        }
    }
    found.retain(|_, places| {
        let first = &places[0].0;
        places.len() > 1 && (first.is_empty() || places.iter().any(|(group, _)| group != first))
    });
    found.into_iter().map(|(name, places)| (name, places.into_iter().map(|(_, place)| place).collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_sources() {
        let sources = [
            (
                "supervisor/src/scheduler/mod.rs",
                "//! Doc.\n\nmod queue;\npub struct Scheduler {\n    a: u8,\n    b: u8,\n}\n\n#[cfg(test)]\nmod tests {\n    struct Clock;\n    fn long() {\n    }\n}\n\nimpl Scheduler {\n    /// Doc.\n    fn step(&self) {\n        // Why.\n        self.go()\n    }\n}\n",
            ),
            (
                "supervisor/src/scheduler/queue.rs",
                "use super::Scheduler;\nimpl Scheduler {\n    fn go(&self) {}\n}\npub enum Clock {}\n",
            ),
            ("supervisor/src/os/clock.rs", "pub struct Clock;\nfn f() { struct Inner; }\n"),
            ("proto/src/lib.rs", "pub struct Inner;\npub trait Clock {}\n"),
        ];
        let report = Report::of(&Workspace::of(&sources).unwrap());
        let room = report.room("supervisor/scheduler").unwrap();
        assert_eq!((room.files, room.lines, room.lines_without_tests, room.code), (2, 27, 21, 15));
        assert_eq!((room.longest[0].lines, room.longest[0].function.as_str()), (4, "Scheduler::step"));
        assert_eq!(room.longest.len(), 2);
        assert_eq!(report.field_count("supervisor/src/scheduler/", "Scheduler"), Some(2));
        assert_eq!(report.impl_count_elsewhere("Scheduler"), 1);
        let shared = &report.names_shared_in_supervisor;
        assert_eq!(shared["Clock"], ["supervisor/src/scheduler/queue.rs:5", "supervisor/src/os/clock.rs:1"]);
        assert_eq!(shared.len(), 1);
        assert_eq!(report.names_shared_across_crates.keys().collect::<Vec<_>>(), ["Clock"]);
    }
}
