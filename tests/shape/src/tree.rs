//! One file's syntax tree as facts: functions, types, `impl` blocks, imports, modules, statements whose value is dropped.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Block, Expr, Pat, Stmt, UseTree};

use crate::{Dropped, File, Function, Import, Lines, Spot, TypeDef};

/// Reads the tree into the file, and resolves what [`crate::tokens`] has noted.
pub(crate) fn read(file: &mut File, tree: &syn::File) {
    let documented = |attribute: &syn::Attribute| {
        attribute.path().is_ident("doc") && matches!(attribute.style, syn::AttrStyle::Inner(_))
    };
    file.documented = tree.attrs.first().is_some_and(documented);
    let scope = 1..=usize::MAX;
    let mut reader = Reader { module: file.module.clone(), file, scope, owner: None, in_function: false };
    reader.visit_file(tree);
    resolve(file);
}

fn resolve(file: &mut File) {
    // Imports first, since the others go through them; twice, for an import that goes through another one.
    for _ in 0..2 {
        for index in 0..file.imports.len() {
            let import = &file.imports[index];
            file.imports[index].path = file.resolve(&import.path, import.line);
        }
    }
    let names: Vec<String> = file.names.iter().map(|spot| file.resolve(&spot.name, spot.line)).collect();
    let calls: Vec<String> = file.calls.iter().map(|call| file.resolve(&call.path, call.line)).collect();
    let impls: Vec<String> = file.impls.iter().map(|spot| file.resolve(&spot.name, spot.line)).collect();
    let heads: Vec<String> = file.dropped.iter().map(|dropped| file.resolve(&dropped.head, dropped.line)).collect();
    let owners: Vec<Option<String>> = file
        .functions
        .iter()
        .map(|function| function.owner.as_ref().map(|owner| file.resolve(owner, *function.lines.start())))
        .collect();
    file.names.iter_mut().zip(names).for_each(|(spot, name)| spot.name = name);
    file.calls.iter_mut().zip(calls).for_each(|(call, path)| call.path = path);
    file.impls.iter_mut().zip(impls).for_each(|(spot, name)| spot.name = name);
    file.dropped.iter_mut().zip(heads).for_each(|(dropped, head)| dropped.head = head);
    file.functions.iter_mut().zip(owners).for_each(|(function, owner)| function.owner = owner);
    let imported = file.imports.iter().map(|import| Spot { line: import.line, name: import.path.clone() });
    file.names.extend(imported.collect::<Vec<_>>());
    file.names.sort_by(|a, b| (a.line, &a.name).cmp(&(b.line, &b.name)));
    file.names.dedup();
}

struct Reader<'a> {
    file: &'a mut File,
    module: String,
    scope: Lines,
    /// The type or trait around, and whether it is an `impl` without a trait.
    owner: Option<(String, bool)>,
    in_function: bool,
}

impl Reader<'_> {
    fn function(&mut self, signature: &syn::Signature, visibility: Option<&syn::Visibility>, block: &Block) {
        let begin = visibility.filter(|visibility| !matches!(visibility, syn::Visibility::Inherited));
        let first = begin.map_or_else(|| line(signature), line);
        let lines = first..=block.span().end().line;
        let (owner, inherent) = self.owner.clone().map_or((None, false), |(owner, inherent)| (Some(owner), inherent));
        let name = signature.ident.to_string();
        self.file.functions.push(Function { name, owner, inherent, lines: lines.clone() });
        let around = (std::mem::replace(&mut self.scope, lines), self.owner.take(), self.in_function);
        self.in_function = true;
        visit::visit_signature(self, signature);
        visit::visit_block(self, block);
        (self.scope, self.owner, self.in_function) = around;
    }

    fn type_def(&mut self, ident: &syn::Ident, kind: &'static str, field_count: usize) {
        let local = self.in_function;
        self.file.types.push(TypeDef { name: ident.to_string(), line: line(ident), kind, field_count, local });
    }

    fn import(&mut self, base: &str, tree: &UseTree) {
        let join = |name: &syn::Ident| if base.is_empty() { name.to_string() } else { format!("{base}::{name}") };
        let (ident, alias, path) = match tree {
            UseTree::Path(path) => return self.import(&join(&path.ident), &path.tree),
            UseTree::Group(group) => return group.items.iter().for_each(|item| self.import(base, item)),
            UseTree::Glob(_) => (tree.span(), "*".to_owned(), base.to_owned()),
            UseTree::Name(name) if name.ident == "self" => (tree.span(), crate::last(base).to_owned(), base.to_owned()),
            UseTree::Name(name) => (tree.span(), name.ident.to_string(), join(&name.ident)),
            UseTree::Rename(rename) if rename.ident == "self" => {
                (tree.span(), rename.rename.to_string(), base.to_owned())
            }
            UseTree::Rename(rename) => (tree.span(), rename.rename.to_string(), join(&rename.ident)),
        };
        let scope = self.scope.clone();
        self.file.imports.push(Import { line: ident.start().line, scope, alias, path });
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let module = format!("{}::{}", self.module, item.ident);
        if item.content.is_none() {
            self.file.children.push(Spot { line: line(&item.ident), name: module });
            return;
        }
        let lines = line(item)..=item.span().end().line;
        self.file.inline_modules.push((lines.clone(), module.clone()));
        let around = (std::mem::replace(&mut self.module, module), std::mem::replace(&mut self.scope, lines));
        visit::visit_item_mod(self, item);
        (self.module, self.scope) = around;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import("", &item.tree);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let owner = type_path(&item.self_ty);
        if item.trait_.is_none() {
            self.file.impls.push(Spot { line: line(&item.impl_token), name: owner.clone() });
        }
        let around = self.owner.replace((owner, item.trait_.is_none()));
        visit::visit_item_impl(self, item);
        self.owner = around;
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.type_def(&item.ident, "trait", 0);
        let around = self.owner.replace((item.ident.to_string(), false));
        visit::visit_item_trait(self, item);
        self.owner = around;
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, Some(&item.vis), &item.block);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, Some(&item.vis), &item.block);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, None, block);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.type_def(&item.ident, "struct", item.fields.len());
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.type_def(&item.ident, "enum", 0);
    }

    fn visit_item_union(&mut self, item: &'ast syn::ItemUnion) {
        self.type_def(&item.ident, "union", 0);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.type_def(&item.ident, "type", 0);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.file.constants.push(line(&item.const_token)..=item.span().end().line);
        visit::visit_item_const(self, item);
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.file.constants.push(line(&item.const_token)..=item.span().end().line);
        visit::visit_impl_item_const(self, item);
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.file.constants.push(line(&item.static_token)..=item.span().end().line);
        visit::visit_item_static(self, item);
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        let dropped = match statement {
            Stmt::Expr(Expr::Assign(assign), Some(_)) if matches!(*assign.left, Expr::Infer(_)) => Some(&*assign.right),
            Stmt::Expr(value, Some(_)) => Some(value),
            Stmt::Local(local) if is_unused(&local.pat) => local.init.as_ref().map(|init| &*init.expr),
            _ => None,
        };
        if let Some((head, methods)) = dropped.and_then(chain) {
            self.file.dropped.push(Dropped { line: line(statement), head, methods });
        }
        visit::visit_stmt(self, statement);
    }

    /// The blocks in a macro's arguments, as those of `select!`, hold statements like any other.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.blocks_of(call.tokens.clone());
    }
}

impl Reader<'_> {
    fn blocks_of(&mut self, tokens: TokenStream) {
        for tree in tokens {
            let TokenTree::Group(group) = tree else { continue };
            let is_braces = group.delimiter() == Delimiter::Brace;
            let block = is_braces.then(|| syn::parse2::<Block>(TokenTree::Group(group.clone()).into()));
            match block {
                Some(Ok(block)) => self.visit_block(&block),
                _ => self.blocks_of(group.stream()),
            }
        }
    }
}

fn line(node: &impl Spanned) -> usize {
    node.span().start().line
}

/// `_` and `_name`, which holds a value that nobody asks for.
fn is_unused(pattern: &Pat) -> bool {
    match pattern {
        Pat::Wild(_) => true,
        Pat::Ident(name) => name.ident.to_string().starts_with('_'),
        Pat::Type(typed) => is_unused(&typed.pat),
        _ => false,
    }
}

/// The function at the head of `f(…).g()?.await`, and what follows it.
fn chain(value: &Expr) -> Option<(String, Vec<String>)> {
    let then = |inner: &Expr, method: String| {
        let (head, mut methods) = chain(inner)?;
        methods.push(method);
        Some((head, methods))
    };
    match value {
        Expr::Await(inner) => then(&inner.base, "await".to_owned()),
        Expr::MethodCall(call) => then(&call.receiver, call.method.to_string()),
        Expr::Try(inner) => chain(&inner.expr),
        Expr::Paren(inner) => chain(&inner.expr),
        Expr::Call(call) => {
            let Expr::Path(function) = &*call.func else { return None };
            let head = path_text(&function.path);
            match (head.as_str(), call.args.first()) {
                ("drop", Some(dropped)) => chain(dropped),
                _ => Some((head, Vec::new())),
            }
        }
        _ => None,
    }
}

fn type_path(name: &syn::Type) -> String {
    match name {
        syn::Type::Path(path) => path_text(&path.path),
        syn::Type::Reference(reference) => type_path(&reference.elem),
        _ => String::new(),
    }
}

fn path_text(path: &syn::Path) -> String {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>().join("::")
}
