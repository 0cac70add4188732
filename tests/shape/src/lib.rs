//! The workspace's sources as facts: what is defined where, who names whom, who calls whom, how long everything is.
//!
//! [`tokens`] and [`tree`] are the only files that know `syn`; they turn one file into a [`File`] of plain values. The
//! house rules (`tests/it/tidy.rs`) and the figures (`./dev shape`) are filters over these. A fact carries its line, and
//! whether it belongs to tests is asked of the file ([`File::in_tests`]), so that no reader can lose its place.
//!
//! Limits: names are resolved by the file's own imports, not by types. Of a glob import only the module is known, a
//! method call is followed on `self` and `Self` alone, and macros are read as tokens, not expanded.

#![forbid(unsafe_code)]

pub mod cycles;
pub mod report;
pub mod rules;

mod tokens;
mod tree;
mod workspace;

use std::ops::RangeInclusive;

pub use workspace::{Workspace, root};

/// Lines, first and last.
pub type Lines = RangeInclusive<usize>;

/// One source file.
#[derive(Debug, Default)]
pub struct File {
    /// From the workspace's root, with slashes.
    pub path: String,
    /// The folder whose root module `crate::` means: `supervisor/src`, `tests/it`.
    pub home: String,
    /// `crate::scheduler::queue`; `crate` in the root file.
    pub module: String,
    /// The file is tests and nothing else: it lies in a folder of tests, or is only reached through `#[cfg(test)] mod`.
    pub only_tests: bool,
    /// It begins with a module doc.
    pub documented: bool,
    /// Number of all its lines.
    pub line_count: usize,
    /// Lines that hold more than comments and white space.
    pub code_lines: Vec<usize>,
    /// Items under `#[cfg(test)]` and functions under `#[test]`, attributes and docs included.
    pub test_items: Vec<Lines>,
    /// Attributes, docs left out.
    pub attributes: Vec<Attribute>,
    /// Uses of macros, by their last name.
    pub macros: Vec<Spot>,
    /// Each `unsafe`, and each `async`, by that word.
    pub keywords: Vec<Spot>,
    /// Paths of two and more names, imports included, from `crate::` or from an external crate on.
    pub names: Vec<Spot>,
    /// Calls of functions by path.
    pub calls: Vec<Call>,
    /// Calls through `self.` and `Self::`, by the method's name.
    pub self_calls: Vec<Spot>,
    /// Functions and methods with a body.
    pub functions: Vec<Function>,
    /// `impl` blocks without a trait.
    pub impls: Vec<Spot>,
    /// Structs, enums, unions, traits and aliases.
    pub types: Vec<TypeDef>,
    /// What an import or a re-export calls by a name of its own.
    pub imports: Vec<Import>,
    /// Statements whose value nobody keeps.
    pub dropped: Vec<Dropped>,
    /// Modules declared here with a file of their own.
    pub children: Vec<Spot>,
    /// Modules written out here.
    pub inline_modules: Vec<(Lines, String)>,
    /// Where a constant or static is defined.
    pub constants: Vec<Lines>,
}

/// Something with a name, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// Line of its first token.
    pub line: usize,
    /// See the field that holds it.
    pub name: String,
}

/// An attribute.
#[derive(Debug)]
pub struct Attribute {
    /// Line of its `#`.
    pub line: usize,
    /// Its path: `cfg`, `tokio::test`.
    pub name: String,
    /// What it says, as tokens with spaces between.
    pub text: String,
}

/// A call of a function by its path.
#[derive(Debug)]
pub struct Call {
    /// Line of the path's first name.
    pub line: usize,
    /// The path, resolved.
    pub path: String,
    /// There are arguments, and all of them are literals.
    pub literal: bool,
}

/// A function with a body.
#[derive(Debug)]
pub struct Function {
    /// Its own name.
    pub name: String,
    /// The type whose `impl` it stands in, resolved; or the trait that gives it.
    pub owner: Option<String>,
    /// It stands in an `impl` without a trait.
    pub inherent: bool,
    /// From the signature to the closing brace.
    pub lines: Lines,
}

impl Function {
    /// Number of lines.
    #[must_use]
    pub fn line_count(&self) -> usize {
        count(&self.lines)
    }

    /// `Scheduler::step`, or the name alone.
    #[must_use]
    pub fn title(&self) -> String {
        self.owner.as_ref().map_or_else(|| self.name.clone(), |owner| format!("{}::{}", last(owner), self.name))
    }
}

/// A type that is defined here.
#[derive(Debug)]
pub struct TypeDef {
    /// Its name.
    pub name: String,
    /// Line of its name.
    pub line: usize,
    /// `struct`, `enum`, `union`, `trait` or `type`.
    pub kind: &'static str,
    /// Fields of a struct; of others 0.
    pub field_count: usize,
    /// It stands inside a function, where nobody else can name it.
    pub local: bool,
}

/// One name that an import makes known.
#[derive(Debug)]
pub struct Import {
    /// Line of the name.
    pub line: usize,
    /// The function or module that it holds in.
    pub scope: Lines,
    /// What it is called here.
    pub alias: String,
    /// What it is, resolved.
    pub path: String,
}

/// A statement whose value is dropped: `f().g();`, `let _ = f().g();`, `drop(f().g());`.
#[derive(Debug)]
pub struct Dropped {
    /// Line of the statement.
    pub line: usize,
    /// The function at the head of the chain, resolved.
    pub head: String,
    /// The methods that follow, `await` among them.
    pub methods: Vec<String>,
}

impl File {
    /// Whether this line belongs to tests.
    #[must_use]
    pub fn in_tests(&self, line: usize) -> bool {
        self.only_tests || self.test_items.iter().any(|lines| lines.contains(&line))
    }

    /// Number of lines outside of tests.
    #[must_use]
    pub fn product_line_count(&self) -> usize {
        (1..=self.line_count).filter(|line| !self.in_tests(*line)).count()
    }

    /// Number of lines of code outside of tests, comments and blank lines left out.
    #[must_use]
    pub fn code_line_count(&self) -> usize {
        self.code_lines.iter().filter(|line| !self.in_tests(**line)).count()
    }

    /// The room: a folder of the supervisor, `supervisor/scheduler`, or a whole package elsewhere.
    #[must_use]
    pub fn room(&self) -> String {
        let package = self.package();
        match self.module.split("::").nth(1) {
            Some(room) if package == "supervisor" && self.home.ends_with("/src") => format!("{package}/{room}"),
            _ => package.to_owned(),
        }
    }

    /// The folder of its package.
    #[must_use]
    pub fn package(&self) -> &str {
        self.home.strip_suffix("/src").unwrap_or_else(|| self.home.split('/').next().unwrap_or_default())
    }

    /// The innermost module that this line stands in.
    fn module_at(&self, line: usize) -> &str {
        let inside = self.inline_modules.iter().filter(|(lines, _)| lines.contains(&line));
        inside.min_by_key(|(lines, _)| count(lines)).map_or(self.module.as_str(), |(_, module)| module.as_str())
    }

    /// The innermost function that this line stands in.
    #[must_use]
    pub fn function_at(&self, line: usize) -> Option<&Function> {
        self.functions
            .iter()
            .filter(|function| function.lines.contains(&line))
            .min_by_key(|function| function.line_count())
    }

    /// A path from its root on: `crate::…`, or the name of an external crate first.
    fn resolve(&self, path: &str, line: usize) -> String {
        let module = self.module_at(line);
        let (first, rest) = path.split_once("::").map_or((path, None), |(first, rest)| (first, Some(rest)));
        let join = |base: &str| rest.map_or_else(|| base.to_owned(), |rest| format!("{base}::{rest}"));
        match first {
            "crate" => path.to_owned(),
            "self" => join(module),
            "super" => {
                let (mut base, mut rest) = (parent(module), rest.unwrap_or_default());
                while let Some(further) = rest.strip_prefix("super").filter(|r| r.is_empty() || r.starts_with("::")) {
                    (base, rest) = (parent(base), further.trim_start_matches("::"));
                }
                if rest.is_empty() { base.to_owned() } else { format!("{base}::{rest}") }
            }
            _ => {
                let known = self.imports.iter().filter(|import| import.alias == first && import.scope.contains(&line));
                let import = known.min_by_key(|import| count(&import.scope)).filter(|import| import.path != path);
                if let Some(import) = import {
                    return join(&import.path);
                }
                let is_child = self.children.iter().any(|child| child.name == format!("{module}::{first}"))
                    || self.inline_modules.iter().any(|(_, inline)| *inline == format!("{module}::{first}"));
                let is_own = self.types.iter().any(|own| own.name == first);
                if is_child || is_own { format!("{module}::{path}") } else { path.to_owned() }
            }
        }
    }
}

/// The module above; the root is above itself.
fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or(module, |(parent, _)| parent)
}

/// The last name of a path.
#[must_use]
pub fn last(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}

/// Whether a path is this one or goes on from it.
#[must_use]
pub fn is_under(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn count(lines: &Lines) -> usize {
    lines.end() - lines.start() + 1
}
