//! One file's tokens as facts: lines of code, attributes and what they make a test, names, calls, macros.
//!
//! Tokens, since they are the same inside a macro as outside: a rule that walked the tree would be blind in `select!`.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::{Meta, Token};

use crate::{Attribute, Call, File, Spot};

/// Reads the tokens into the file. Names and calls stay as they are written; [`crate::tree`] resolves them.
pub(crate) fn read(file: &mut File, tokens: TokenStream) {
    let mut code_lines = BTreeSet::new();
    scan(file, &mut code_lines, tokens);
    file.code_lines = code_lines.into_iter().collect();
}

fn scan(file: &mut File, code_lines: &mut BTreeSet<usize>, tokens: TokenStream) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < trees.len() {
        if let Some((attribute, after)) = attribute(&trees, at) {
            if attribute.name != "doc" {
                code_lines.extend(lines_of(&trees[at..after]));
                if makes_test(&attribute) {
                    file.test_items.push(attribute.line..=end_of_item(&trees, after));
                }
                file.attributes.push(attribute);
            }
            at = after;
            continue;
        }
        match &trees[at] {
            TokenTree::Group(group) => {
                code_lines.extend([group.span_open().start().line, group.span_close().end().line]);
                scan(file, code_lines, group.stream());
            }
            // Imports are read from the tree, since their names are told in pieces.
            TokenTree::Ident(word) if word == "use" && !is_punct(trees.get(at + 1), '<') => {
                let after = (at..trees.len()).find(|at| is_punct(trees.get(*at), ';')).unwrap_or(trees.len());
                code_lines.extend(lines_of(&trees[at..after]));
                at = after;
                continue;
            }
            // `pub(in crate::room)` says who may see it, not whom it knows.
            TokenTree::Ident(word) if word == "pub" && is_restriction(trees.get(at + 1)) => {
                code_lines.extend(lines_of(&trees[at..=at + 1]));
                at += 2;
                continue;
            }
            TokenTree::Ident(_) => {
                let path = path(&trees, at);
                code_lines.extend(lines_of(&trees[at..path.after]));
                note(file, &trees, at, &path);
                at = path.after;
                continue;
            }
            TokenTree::Literal(_) | TokenTree::Punct(_) => code_lines.extend(lines_of(&trees[at..=at])),
        }
        at += 1;
    }
}

/// `(in crate::room)`, and not the field of a tuple.
fn is_restriction(tree: Option<&TokenTree>) -> bool {
    let Some(TokenTree::Group(group)) = tree else { return false };
    let first = group.stream().into_iter().next();
    group.delimiter() == Delimiter::Parenthesis && matches!(first, Some(TokenTree::Ident(word)) if word == "in")
}

/// Lines from the first to the last token of each tree.
fn lines_of(trees: &[TokenTree]) -> impl Iterator<Item = usize> {
    trees.iter().flat_map(|tree| tree.span().start().line..=tree.span().end().line)
}

/// The attribute that begins here, and the index after it.
fn attribute(trees: &[TokenTree], at: usize) -> Option<(Attribute, usize)> {
    if !is_punct(trees.get(at), '#') {
        return None;
    }
    let bracket = at + if is_punct(trees.get(at + 1), '!') { 2 } else { 1 };
    let Some(TokenTree::Group(group)) = trees.get(bracket) else { return None };
    if group.delimiter() != Delimiter::Bracket {
        return None;
    }
    let inside: Vec<TokenTree> = group.stream().into_iter().collect();
    let name = if inside.is_empty() { String::new() } else { path(&inside, 0).text };
    let line = trees[at].span().start().line;
    Some((Attribute { line, name, text: group.stream().to_string() }, bracket + 1))
}

/// `#[test]`, `#[tokio::test]`, and a `cfg` that holds only in tests.
fn makes_test(attribute: &Attribute) -> bool {
    fn only_in_tests(meta: &Meta) -> bool {
        let all = |list: &syn::MetaList| list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
        match meta {
            Meta::Path(path) => path.is_ident("test"),
            Meta::List(list) if list.path.is_ident("cfg") || list.path.is_ident("all") => {
                all(list).is_ok_and(|metas| metas.iter().any(only_in_tests))
            }
            _ => false,
        }
    }
    match attribute.name.as_str() {
        "cfg" => syn::parse_str::<Meta>(&attribute.text).is_ok_and(|meta| only_in_tests(&meta)),
        name => name == "test" || name.ends_with("::test"),
    }
}

/// Last line of the item, statement, field or arm that begins here: its first `;`, `{…}` or comma outside of `<>`.
fn end_of_item(trees: &[TokenTree], from: usize) -> usize {
    let mut angles = 0_usize;
    for at in from..trees.len() {
        match &trees[at] {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return group.span().end().line,
            TokenTree::Punct(punct) => match punct.as_char() {
                ';' => return punct.span().end().line,
                ',' if angles == 0 => return punct.span().end().line,
                '<' => angles += 1,
                '>' if !is_punct(trees.get(at - 1), '-') => angles = angles.saturating_sub(1),
                _ => {}
            },
            _ => {}
        }
    }
    trees.last().map_or(0, |tree| tree.span().end().line)
}

/// A path as it is written, generics left out.
struct Path {
    text: String,
    after: usize,
}

fn path(trees: &[TokenTree], at: usize) -> Path {
    let mut text = trees[at].to_string();
    let mut after = at + 1;
    while is_colons(trees, after) {
        match trees.get(after + 2) {
            Some(TokenTree::Ident(name)) => {
                text = format!("{text}::{name}");
                after += 3;
            }
            Some(TokenTree::Punct(punct)) if punct.as_char() == '<' => after = after_generics(trees, after + 2),
            _ => break,
        }
    }
    Path { text, after }
}

fn after_generics(trees: &[TokenTree], from: usize) -> usize {
    let mut depth = 0_usize;
    for at in from..trees.len() {
        if is_punct(trees.get(at), '<') {
            depth += 1;
        } else if is_punct(trees.get(at), '>') && !is_punct(trees.get(at - 1), '-') {
            depth -= 1;
            if depth == 0 {
                return at + 1;
            }
        }
    }
    trees.len()
}

fn note(file: &mut File, trees: &[TokenTree], at: usize, path: &Path) {
    let line = trees[at].span().start().line;
    let spot = |name: &str| Spot { line, name: name.to_owned() };
    let before = |back: usize| at.checked_sub(back).and_then(|at| trees.get(at));
    let arguments = match trees.get(path.after) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis => Some(group.stream()),
        _ => None,
    };
    if matches!(path.text.as_str(), "unsafe" | "async") {
        file.keywords.push(spot(&path.text));
        return;
    }
    if is_punct(before(1), '.') && !is_punct(before(2), '.') {
        let through_self = is_ident(before(2), "self") && !is_punct(before(3), '.');
        if through_self && arguments.is_some() {
            file.self_calls.push(spot(&path.text));
        }
        return;
    }
    if let Some(method) = path.text.strip_prefix("Self::") {
        file.self_calls.push(spot(method));
    }
    if is_punct(trees.get(path.after), '!') && matches!(trees.get(path.after + 1), Some(TokenTree::Group(_))) {
        file.macros.push(spot(crate::last(&path.text)));
    }
    if is_ident(before(1), "fn") {
        return;
    }
    if path.text.contains("::") {
        file.names.push(spot(&path.text));
    }
    if let Some(arguments) = arguments {
        file.calls.push(Call { line, path: path.text.clone(), literal: is_literal(arguments) });
    }
}

/// Whether there is a literal and no name.
fn is_literal(tokens: TokenStream) -> bool {
    let mut has_literal = false;
    for tree in tokens {
        match tree {
            TokenTree::Literal(_) => has_literal = true,
            TokenTree::Punct(_) => {}
            TokenTree::Group(group) if is_literal(group.stream()) => has_literal = true,
            TokenTree::Group(_) | TokenTree::Ident(_) => return false,
        }
    }
    has_literal
}

fn is_punct(tree: Option<&TokenTree>, character: char) -> bool {
    matches!(tree, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

fn is_ident(tree: Option<&TokenTree>, word: &str) -> bool {
    matches!(tree, Some(TokenTree::Ident(ident)) if ident == word)
}

fn is_colons(trees: &[TokenTree], at: usize) -> bool {
    matches!(trees.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':' && punct.spacing() == Spacing::Joint)
        && is_punct(trees.get(at + 1), ':')
}
