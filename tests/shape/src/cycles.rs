//! Who depends on whom in a circle: rooms, files of a room, methods of a type.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;

use crate::{File, Function, Workspace, is_under, last, parent};

/// Things that depend on each other, each on all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cycle {
    /// In alphabetical order.
    pub members: Vec<String>,
    /// The shortest way round: each step with the place that takes it.
    pub shortest: Vec<String>,
    /// Number of files that hold the members.
    pub file_count: usize,
}

/// A directed graph: from whom to whom, and where it is written.
#[derive(Debug, Default)]
pub struct Graph(BTreeMap<String, BTreeMap<String, String>>);

impl Graph {
    /// Adds an edge; of several places the first counts.
    pub fn add(&mut self, from: &str, to: &str, place: String) {
        self.0.entry(to.to_owned()).or_default();
        self.0.entry(from.to_owned()).or_default().entry(to.to_owned()).or_insert(place);
    }

    /// The strongly connected components of two and more members.
    #[must_use]
    pub fn cycles(&self) -> Vec<Cycle> {
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            self.0.keys().map(|node| (node.as_str(), self.reachable(node))).collect();
        let mut seen = BTreeSet::new();
        let mut cycles = Vec::new();
        for (node, reaches) in &reached {
            let members: Vec<&str> = reaches.iter().copied().filter(|other| reached[other].contains(node)).collect();
            if members.len() > 1 && seen.insert(members.clone()) {
                let shortest = members.iter().filter_map(|member| self.way_back(member)).min_by_key(Vec::len);
                let members: Vec<String> = members.into_iter().map(str::to_owned).collect();
                let file_count = members.len();
                cycles.push(Cycle { members, shortest: shortest.unwrap_or_default(), file_count });
            }
        }
        cycles
    }

    fn neighbours(&self, node: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0.get(node).into_iter().flatten().map(|(to, place)| (to.as_str(), place.as_str()))
    }

    fn reachable(&self, from: &str) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut open: Vec<&str> = self.neighbours(from).map(|(to, _)| to).collect();
        while let Some(node) = open.pop() {
            if reached.insert(node) {
                open.extend(self.neighbours(node).map(|(to, _)| to));
            }
        }
        reached
    }

    /// The shortest way from a node over another one to itself.
    fn way_back(&self, start: &str) -> Option<Vec<String>> {
        let mut ways: VecDeque<(&str, Vec<String>)> = VecDeque::from([(start, Vec::new())]);
        let mut seen = BTreeSet::new();
        while let Some((node, way)) = ways.pop_front() {
            for (to, place) in self.neighbours(node).filter(|(to, _)| *to != node) {
                let mut way = way.clone();
                way.push(format!("{node} → {to} ({place})"));
                if to == start {
                    return Some(way);
                }
                if seen.insert(to) {
                    ways.push_back((to, way));
                }
            }
        }
        None
    }
}

/// The rooms of the supervisor, by what their files name with `crate::`.
#[must_use]
pub fn of_rooms(workspace: &Workspace) -> Vec<Cycle> {
    let mut graph = Graph::default();
    for file in workspace.under("supervisor/src/") {
        let Some(room) = file.module.split("::").nth(1) else { continue };
        for name in file.names.iter().filter(|name| !file.in_tests(name.line)) {
            let mut names = name.name.split("::");
            match (names.next(), names.next()) {
                (Some("crate"), Some(other)) if other != room => {
                    graph.add(room, other, format!("{}:{}", file.path, name.line));
                }
                _ => {}
            }
        }
    }
    graph.cycles()
}

/// The files of each room, by what they name, followed through re-exports to the file that defines it, and by the methods
/// that they call through `self`, which no import tells of.
#[must_use]
pub fn of_files(workspace: &Workspace) -> Vec<Cycle> {
    let mut graph = Graph::default();
    for (from, line, to) in workspace.edges() {
        if from.room() == to.room() {
            graph.add(&from.path, &to.path, format!("line {line}"));
        }
    }
    for (type_name, methods) in methods(workspace) {
        for (file, method) in methods.values() {
            for (callee, line) in callees(file, method, &type_name) {
                match methods.get(&callee) {
                    Some((other, _)) if other.path != file.path => {
                        graph.add(&file.path, &other.path, format!("line {line}: {}::{callee}", last(&type_name)));
                    }
                    _ => {}
                }
            }
        }
    }
    graph.cycles()
}

/// The methods of one type that call each other in a circle, through `self.`, `Self::` or the type's name.
#[must_use]
pub fn of_methods(workspace: &Workspace) -> Vec<Cycle> {
    let mut cycles = Vec::new();
    for (type_name, methods) in methods(workspace) {
        let mut graph = Graph::default();
        for (file, method) in methods.values() {
            for (callee, line) in callees(file, method, &type_name) {
                if methods.contains_key(&callee) {
                    graph.add(&method.title(), &format!("{}::{callee}", last(&type_name)), at(file, line));
                }
            }
        }
        let file_of = |title: &String| methods.get(last(title)).map(|(file, _)| file.path.as_str());
        cycles.extend(graph.cycles().into_iter().map(|cycle| {
            let files: BTreeSet<_> = cycle.members.iter().filter_map(file_of).collect();
            Cycle { file_count: files.len(), ..cycle }
        }));
    }
    cycles
}

/// Methods that call themselves, with their place.
#[must_use]
pub fn recursions(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for (type_name, methods) in methods(workspace) {
        for (name, (file, method)) in &methods {
            if callees(file, method, &type_name).any(|(callee, _)| callee == *name) {
                found.push(format!("{} ({})", method.title(), at(file, *method.lines.start())));
            }
        }
    }
    found
}

fn at(file: &File, line: usize) -> String {
    format!("{}:{line}", file.path)
}

/// The product's methods outside of trait implementations, by type (file that defines it, then its name) and name.
type Methods<'a> = BTreeMap<String, (&'a File, &'a Function)>;

fn methods(workspace: &Workspace) -> BTreeMap<String, Methods<'_>> {
    let mut types: BTreeMap<String, Methods<'_>> = BTreeMap::new();
    for file in &workspace.files {
        let product = file.functions.iter().filter(|function| !file.in_tests(*function.lines.start()));
        for method in product.filter(|function| function.inherent) {
            let owner = method.owner.as_deref().unwrap_or_default();
            let home = workspace.definition(file, owner).map_or(file.path.as_str(), |found| found.path.as_str());
            let type_name = format!("{home}::{}", last(owner));
            types.entry(type_name).or_default().insert(method.name.clone(), (file, method));
        }
    }
    types
}

fn callees<'a>(file: &'a File, method: &'a Function, type_name: &'a str) -> impl Iterator<Item = (String, usize)> {
    let inside = |line: usize| method.lines.contains(&line);
    let through_self = file.self_calls.iter().filter(move |call| inside(call.line));
    let by_name = file.calls.iter().filter(move |call| {
        inside(call.line) && last(parent(&call.path)) == last(type_name) && is_under(&call.path, "crate")
    });
    let through_self = through_self.map(|call| (call.name.clone(), call.line));
    through_self.chain(by_name.map(|call| (last(&call.path).to_owned(), call.line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_over_two_files_is_found_and_told_by_its_shortest_way() {
        let sources = [
            (
                "supervisor/src/room/mod.rs",
                "mod other;\npub struct Thing;\nimpl Thing {\n    fn a(&self) { self.b() }\n}\n",
            ),
            (
                "supervisor/src/room/other.rs",
                "use super::Thing;\nimpl Thing {\n    fn b(&self) { assert!(self.c()) }\n    fn c(&self) -> bool { Self::a(self); self.c() }\n}\n",
            ),
        ];
        let workspace = Workspace::of(&sources).unwrap();
        let cycles = of_methods(&workspace);
        assert_eq!(cycles.len(), 1);
        assert_eq!(cycles[0].members, ["Thing::a", "Thing::b", "Thing::c"]);
        assert_eq!(cycles[0].file_count, 2);
        assert_eq!(cycles[0].shortest[0], "Thing::a → Thing::b (supervisor/src/room/mod.rs:4)");
        assert_eq!(recursions(&workspace), ["Thing::c (supervisor/src/room/other.rs:4)"]);
        assert_eq!(of_files(&workspace).len(), 1, "calls through `self` lead from file to file");
        assert!(of_rooms(&workspace).is_empty());
    }

    #[test]
    fn files_and_rooms_are_followed_through_reexports() {
        let sources = [
            ("supervisor/src/a/mod.rs", "mod one;\nmod two;\npub use one::One;\n"),
            ("supervisor/src/a/one.rs", "use super::two::Two;\npub struct One(Two, crate::b::Bee);\n"),
            ("supervisor/src/a/two.rs", "pub struct Two(Option<Box<super::One>>);\n"),
            ("supervisor/src/b.rs", "pub struct Bee;\nfn f() { println!(\"{}\", crate::a::g()) }\n"),
        ];
        let workspace = Workspace::of(&sources).unwrap();
        let files: Vec<_> = of_files(&workspace).into_iter().map(|cycle| cycle.members).collect();
        assert_eq!(files, [["supervisor/src/a/one.rs", "supervisor/src/a/two.rs"]]);
        let rooms: Vec<_> = of_rooms(&workspace).into_iter().map(|cycle| cycle.members).collect();
        assert_eq!(rooms, [["a", "b"]]);
    }
}
