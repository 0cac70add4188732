//! Who asks, as far as what it may do depends on it.

use std::net::IpAddr;
use std::sync::Arc;

use ollmlx_proto::ModelId;

use super::crowd::Peer;
use crate::catalog::{Catalog, CatalogError, ModelRef, is_path};
use crate::config::Right;
use crate::dialect::Rejection;
use crate::driver::Handle;
use crate::types::{Caller, KeyName, Snapshot};

/// Whoever asks.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    /// The key that it brought, where there are keys.
    pub(super) key: Option<KeyName>,
    /// What it may do.
    pub(super) right: Right,
    /// Whether it may name files of this machine.
    pub(super) names_paths: bool,
    /// Where it asks from.
    pub(super) address: IpAddr,
}

impl Asker {
    /// Somebody without a key where there are keys.
    pub(super) fn nobody(address: IpAddr) -> Self {
        Self { key: None, right: Right::Use, names_paths: false, address }
    }

    /// As the line and the memory know it.
    pub(super) fn caller(&self, handle: &Handle) -> Caller {
        handle.caller(self.key.clone(), &Peer::of(self.address))
    }

    /// Whether it may do this.
    ///
    /// # Errors
    /// 403 with what it would need.
    pub(super) fn must(&self, right: Right) -> Result<(), Rejection> {
        if self.right >= right {
            return Ok(());
        }
        let key = self.key.as_ref().map_or("", KeyName::as_str);
        Err(Rejection::new(403, format!("forbidden: the key {key:?} may use models and not manage them")))
    }

    /// Whether it may end the process of a model: one that is its own, or any where it manages them.
    ///
    /// # Errors
    /// 403 for one of others.
    pub(super) fn may_unload(&self, snapshot: &Snapshot, model: &ModelId) -> Result<(), Rejection> {
        let is_own = snapshot.of(model).is_none_or(|view| view.key == self.key);
        if is_own { Ok(()) } else { self.must(Right::Manage) }
    }

    /// What a model may be called before it: of one that is a path, where that is not for it to know, the file's name.
    pub(super) fn name_of<'a>(&self, model: &'a ModelRef) -> &'a str {
        if self.right >= Right::Manage { &model.name } else { model.public_name() }
    }

    /// The Modelfile of a model, with the files that it is made of where these are for it to know.
    pub(super) fn modelfile(&self, catalog: &Catalog, model: &ModelRef) -> String {
        if self.right >= Right::Manage {
            return catalog.modelfile(model);
        }
        catalog.modelfile(&ModelRef { weights: Vec::new(), adapters: Vec::new(), ..model.clone() })
    }

    /// Refuses a path, whether there is anything or not, where it may not name one.
    ///
    /// # Errors
    /// 403 with what it would need.
    pub(super) fn must_not_be_path(&self, name: &str) -> Result<(), CatalogError> {
        if self.names_paths || !is_path(name) {
            return Ok(());
        }
        let who = match &self.key {
            Some(key) => format!("the key {:?} may not", key.as_str()),
            None => "without a key only programs of its own machine may".to_owned(),
        };
        let message = format!("a path names a file of the server's machine, which {who}; ask for a model by its name");
        Err(CatalogError::Refused { status_hint: 403, message })
    }

    /// The model of a name, or of a path where it may name one.
    pub(super) async fn resolve(&self, catalog: &Catalog, name: &str) -> Result<Arc<ModelRef>, CatalogError> {
        self.must_not_be_path(name)?;
        catalog.resolve(name).await
    }
}
