//! `create` from a checkpoint: a folder of safetensors and JSON files, on this machine or uploaded file by file.
//!
//! Nothing is converted. Each file becomes a blob and keeps its name in the manifest; a folder of links to the blobs is
//! what the MLX worker's inspector, and later the worker, is given. A creation that fails takes what it copied with it.

use std::sync::Arc;

use crate::limits::MODEL_FILES_MAX;
use tokio::sync::mpsc;

use super::super::blob::import;
use super::super::local::{Checkpoint, LocalModel};
use super::super::manifest::Layer;
use super::super::resolve::view_subject;
use super::super::view::{is_file_name, media_type_of};
use super::super::{Catalog, CatalogError, CreateSpec, Inner, Progress, blocking, io_error, parse_digest};
use super::{Base, Upload, refused, say, withdraw};

/// Copies the folder's files into the store.
pub(super) async fn from_folder(
    catalog: &Catalog,
    local: LocalModel,
    progress: &mpsc::Sender<Progress>,
) -> Result<Base, CatalogError> {
    let label = local.name.clone();
    let (inner, heard) = (Arc::clone(&catalog.inner), progress.clone());
    let copied = blocking("import a checkpoint", move || {
        let folder = local.weights.first().cloned().unwrap_or_default();
        let checkpoint = Checkpoint::read(&folder).ok_or_else(|| refused("the folder holds no usable checkpoint"))?;
        let mut copied = Copied::default();
        let done = checkpoint.names.iter().try_for_each(|name| copied.add(&inner, &checkpoint, name, &heard));
        Ok(done.map_or_else(|error| (copied.new.clone(), Err(error)), |()| (copied.new.clone(), Ok(copied.layers))))
    });
    let (new, layers) = copied.await?;
    let base = match layers {
        Ok(layers) => inspected(catalog, layers, label, progress).await,
        Err(error) => Err(error),
    };
    match base {
        Ok(base) => Ok(Base { imported: new, ..base }),
        Err(error) => {
            withdraw(catalog, new).await?;
            Err(error)
        }
    }
}

/// Takes files that are in the store already.
pub(super) async fn from_files(
    catalog: &Catalog,
    spec: &CreateSpec,
    progress: &mpsc::Sender<Progress>,
) -> Result<Base, CatalogError> {
    let top = spec.files.keys().find_map(|key| key.strip_suffix("config.json")).unwrap_or_default();
    let mut wanted = Vec::with_capacity(spec.files.len());
    for (key, digest) in &spec.files {
        let name = key.strip_prefix(top).unwrap_or(key).to_owned();
        if !is_file_name(&name) {
            return Err(refused(format!("{key:?} can't be the name of a model's file")));
        }
        wanted.push((name, parse_digest(digest)?));
    }
    if !wanted.iter().any(|(name, _)| name == "config.json") {
        return Err(refused("config.json is missing among the files"));
    }
    let inner = Arc::clone(&catalog.inner);
    let layers = blocking("look at uploaded files", move || {
        let find = |(name, digest)| {
            let upload = Upload::find(&inner, name, digest)?;
            Ok(upload.layer(media_type_of(&upload.key), Some(upload.key.clone())))
        };
        wanted.into_iter().map(find).collect::<Result<Vec<_>, _>>()
    })
    .await?;
    inspected(catalog, layers, spec.name.clone(), progress).await
}

/// Shows the files to the inspector.
async fn inspected(
    catalog: &Catalog,
    layers: Vec<Layer>,
    label: String,
    progress: &mpsc::Sender<Progress>,
) -> Result<Base, CatalogError> {
    say(progress, "reading checkpoint").await;
    let (inner, planned) = (Arc::clone(&catalog.inner), layers.clone());
    let view = blocking("look at a checkpoint", move || {
        inner.views.plan(&inner.store, &planned).map_err(|error| refused(error.to_string()))
    })
    .await?;
    catalog.ensure(view.clone()).await?;
    let card = catalog.inner.inspector.card(&view_subject(&view, label)).await;
    match card {
        Ok(card) => Ok(Base::new(layers, &card)),
        Err(failure) => {
            let inner = Arc::clone(&catalog.inner);
            blocking("remove a folder", move || {
                inner.views.prune(&inner.store, &layers);
                Ok(())
            })
            .await?;
            Err(CatalogError::Unreadable(failure))
        }
    }
}

/// What was copied so far.
#[derive(Debug, Default)]
struct Copied {
    layers: Vec<Layer>,
    /// Those of them whose blobs were not there before.
    new: Vec<Layer>,
}

impl Copied {
    fn add(
        &mut self,
        inner: &Inner,
        checkpoint: &Checkpoint,
        name: &str,
        progress: &mpsc::Sender<Progress>,
    ) -> Result<(), CatalogError> {
        if !is_file_name(name) {
            return Err(refused("a file of the folder has a name that no model's file can have"));
        }
        if self.layers.len() >= MODEL_FILES_MAX {
            return Err(refused("too many files"));
        }
        // A link that has taken its place meanwhile is not followed out of the folder.
        let (file, meta) = checkpoint.file(name).and_then(|file| file.open()).map_err(io_error("import a file"))?;
        let (status, total_bytes) = (format!("copying file {name}"), meta.len());
        // A listener who is slow misses some numbers; the copy does not wait for it.
        let mut tell = |completed_bytes| {
            let _ = progress.try_send(Progress::Copying { status: status.clone(), completed_bytes, total_bytes });
        };
        tell(0);
        let (digest, new) = import(&inner.store, file, &mut tell).map_err(io_error("import a file"))?;
        let stored = inner.store.blob(&digest).ok().flatten();
        let size = stored.map_or(total_bytes, |blob| blob.bytes);
        let layer =
            Layer { media_type: media_type_of(name).to_owned(), digest, size, from: None, name: Some(name.to_owned()) };
        if new {
            self.new.push(layer.clone());
        }
        self.layers.push(layer);
        Ok(())
    }
}
