//! `create`: a new manifest from uploaded files, a file on disk, or another model.
//!
//! Files are looked at by an inspector before anything is written; texts become small blobs; the manifest comes
//! last, in one step, under the store's lock. Status lines are Ollama's.

mod checkpoint;

use std::io::Seek as _;
use std::path::PathBuf;
use std::sync::Arc;

use crate::limits::MODEL_FILES_MAX;
use ollmlx_proto::ModelCard;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::blob::import;
use super::digest::Digest;
use super::inspect::Subject;
use super::local::{self, LocalModel, shard_of};
use super::manifest::{Layer, Manifest, media};
use super::model::Backend;
use super::modelfile::{check_parameters, check_role, check_template};
use super::name::Name;
use super::resolve::{details_of, subject_key};
use super::store::{has_gguf_magic, open_regular};
use super::{Catalog, CatalogError, CreateSpec, Inner, Progress, blocking, io_error, parse_digest, parse_name};

/// Layers and labels before the texts of the specification are laid over them.
#[derive(Debug, Default)]
struct Base {
    layers: Vec<Layer>,
    config: Map<String, Value>,
    params: Map<String, Value>,
    /// Label of the weights' type, for quantising.
    file_type: String,
    /// Layers whose blobs this creation brought into the store; they go again where it fails.
    imported: Vec<Layer>,
}

/// A GGUF file in the store.
#[derive(Clone, Debug)]
struct Upload {
    /// What the client calls it.
    key: String,
    digest: Digest,
    path: PathBuf,
    size: u64,
}

pub(super) async fn create(
    catalog: &Catalog,
    spec: CreateSpec,
    progress: &mpsc::Sender<Progress>,
) -> Result<ollmlx_proto::ModelId, CatalogError> {
    let name = parse_name(&spec.name)?;
    check(&spec)?;
    let mut base = match spec.from.as_deref().filter(|from| !from.is_empty()) {
        Some(from) if local::is_path(from) => from_path(catalog, from, progress).await?,
        Some(from) => from_model(catalog, from, progress).await?,
        None if spec.files.is_empty() => return Err(refused("neither 'from' or 'files' was specified")),
        None => from_files(catalog, &spec, progress).await?,
    };
    let imported = std::mem::take(&mut base.imported);
    if let Err(error) = adjust(catalog, &spec, &mut base).await {
        withdraw(catalog, imported).await?;
        return Err(error);
    }
    let inner = Arc::clone(&catalog.inner);
    let guard = catalog.lock().await;
    let (statuses, result) = blocking("create a model", move || {
        let _guard = guard;
        let mut statuses = Vec::new();
        let result = commit(&inner, &name, base, spec, &mut statuses);
        if result.is_err() {
            discard(&inner, &imported);
        }
        Ok((statuses, result))
    })
    .await?;
    // Told after the lock is free: a client that reads slowly must not hold up the store.
    for status in statuses {
        say(progress, status).await;
    }
    let id = result?;
    say(progress, "success").await;
    Ok(id)
}

/// What the specification asks of the weights.
async fn adjust(catalog: &Catalog, spec: &CreateSpec, base: &mut Base) -> Result<(), CatalogError> {
    check_quantize(spec, base)?;
    if !spec.adapters.is_empty() {
        let adapters = uploads(catalog, &spec.adapters, Role::Adapter).await?;
        base.layers.retain(|layer| layer.media_type != media::ADAPTER);
        base.layers.extend(adapters.iter().map(|adapter| adapter.layer(media::ADAPTER, None)));
    }
    Ok(())
}

/// What can be said without touching the disk.
fn check(spec: &CreateSpec) -> Result<(), CatalogError> {
    if !spec.files.keys().chain(spec.adapters.keys()).all(|key| is_relative(key)) {
        return Err(refused("file path must be relative"));
    }
    if spec.files.len() > MODEL_FILES_MAX {
        return Err(refused("too many files"));
    }
    if spec.adapters.len() > 1 {
        return Err(refused("only one adapter is currently supported"));
    }
    for digest in spec.files.values().chain(spec.adapters.values()) {
        parse_digest(digest)?;
    }
    if let Some(template) = &spec.template {
        check_template(template).map_err(refused)?;
    }
    check_parameters(&spec.parameters).map_err(refused)?;
    spec.messages.iter().try_for_each(|message| check_role(&message.role)).map_err(|error| refused(error.to_string()))
}

fn check_quantize(spec: &CreateSpec, base: &Base) -> Result<(), CatalogError> {
    let Some(wanted) = spec.quantize.as_deref().filter(|wanted| !wanted.is_empty()) else { return Ok(()) };
    let is = |label: &&str| label.eq_ignore_ascii_case(wanted);
    let message = if !["F32", "F16", "Q4_K_S", "Q4_K_M", "Q8_0"].iter().any(is) {
        let upper = wanted.to_ascii_uppercase();
        format!("unsupported quantization type {upper} - supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0")
    } else if base.file_type.eq_ignore_ascii_case(wanted) {
        return Ok(()); // It is that already.
    } else if !["F16", "BF16", "F32"].contains(&base.file_type.as_str()) {
        "quantization is only supported for F16, BF16 and F32 models".to_owned()
    } else {
        "quantization is not available yet".to_owned()
    };
    Err(CatalogError::Refused { status_hint: 500, message })
}

async fn from_model(catalog: &Catalog, from: &str, progress: &mpsc::Sender<Progress>) -> Result<Base, CatalogError> {
    let entry = match catalog.entry(from).await {
        Err(error @ (CatalogError::NotFound(_) | CatalogError::InvalidName(_))) => {
            let local = catalog.hub(from, error).await?;
            return from_local(catalog, local, progress).await;
        }
        entry => entry?,
    };
    let parent = entry.name.shortest();
    let mut layers = entry.manifest.layers.clone();
    for layer in &mut layers {
        if [media::MODEL, media::TENSOR].contains(&layer.media_type.as_str()) {
            layer.from = Some(parent.clone());
        }
    }
    let file_type = entry.config.text("file_type").to_owned();
    Ok(Base { layers, file_type, params: entry.params().clone(), config: entry.config.0, imported: Vec::new() })
}

async fn from_path(catalog: &Catalog, from: &str, progress: &mpsc::Sender<Progress>) -> Result<Base, CatalogError> {
    from_local(catalog, catalog.local(from).await?, progress).await
}

async fn from_local(
    catalog: &Catalog,
    local: LocalModel,
    progress: &mpsc::Sender<Progress>,
) -> Result<Base, CatalogError> {
    if local.backend == Backend::Mlx {
        return checkpoint::from_folder(catalog, local, progress).await;
    }
    say(progress, "parsing GGUF").await;
    let inner = Arc::clone(&catalog.inner);
    let found = blocking("import a file", move || {
        local
            .weights
            .iter()
            .map(|path| {
                let mut file = open_regular(path).map_err(io_error("import a file"))?;
                // Of the very file that is copied, since another one may have taken its place.
                if !has_gguf_magic(&file).map_err(io_error("import a file"))? {
                    return Err(refused("supplied file was not in GGUF format"));
                }
                file.rewind().map_err(io_error("import a file"))?;
                let (digest, _) = import(&inner.store, file, &mut |_| {}).map_err(io_error("import a file"))?;
                let key = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                Upload::find(&inner, key, digest)
            })
            .collect::<Result<Vec<_>, _>>()
    })
    .await?;
    base_of(catalog, found).await
}

async fn from_files(
    catalog: &Catalog,
    spec: &CreateSpec,
    progress: &mpsc::Sender<Progress>,
) -> Result<Base, CatalogError> {
    if spec.files.keys().any(|key| key.ends_with(".safetensors")) {
        return checkpoint::from_files(catalog, spec, progress).await;
    }
    let named = spec.files.keys().any(|key| local::cut_extension(key).is_some());
    let found = uploads(catalog, &spec.files, if named { Role::Model } else { Role::Unnamed }).await?;
    say(progress, "parsing GGUF").await;
    base_of(catalog, found).await
}

/// What files are said to be, which decides how a stranger among them is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Model,
    /// No name says what it is.
    Unnamed,
    Adapter,
}

/// Finds uploaded files in the store; all must be GGUF.
async fn uploads(
    catalog: &Catalog,
    files: &std::collections::BTreeMap<String, String>,
    role: Role,
) -> Result<Vec<Upload>, CatalogError> {
    let mut parsed = Vec::with_capacity(files.len());
    for (key, digest) in files {
        parsed.push((key.clone(), parse_digest(digest)?));
    }
    let inner = Arc::clone(&catalog.inner);
    blocking("look at uploaded files", move || {
        let found =
            parsed.into_iter().map(|(key, digest)| Upload::find(&inner, key, digest)).collect::<Result<Vec<_>, _>>()?;
        let mut strangers = 0;
        for upload in &found {
            let opened = inner.store.blob(&upload.digest).and_then(|blob| blob.map(|blob| blob.open()).transpose());
            let is_gguf = opened.and_then(|opened| opened.map_or(Ok(false), |(file, _)| has_gguf_magic(&file)));
            strangers += usize::from(!is_gguf.map_err(io_error("read an uploaded file"))?);
        }
        match role {
            _ if strangers == 0 => Ok(found),
            Role::Unnamed if strangers == found.len() => Err(refused("unknown type")),
            Role::Model | Role::Unnamed | Role::Adapter => Err(refused("supplied file was not in GGUF format")),
        }
    })
    .await
}

impl Upload {
    fn find(inner: &Inner, key: String, digest: Digest) -> Result<Self, CatalogError> {
        // A blob that is a link out of the store is as good as absent.
        let Ok(Some(blob)) = inner.store.blob(&digest) else {
            return Err(CatalogError::BlobMissing(digest.to_string()));
        };
        Ok(Self { key, digest, path: blob.path(), size: blob.bytes })
    }

    fn layer(&self, media_type: &str, name: Option<String>) -> Layer {
        Layer { media_type: media_type.to_owned(), digest: self.digest.clone(), size: self.size, from: None, name }
    }
}

/// Inspects files and says what each is: the weights, one of their shards, or a projector.
async fn base_of(catalog: &Catalog, found: Vec<Upload>) -> Result<Base, CatalogError> {
    if let Some(shards) = in_shard_order(&found)? {
        let card = inspect(catalog, &shards).await?;
        let layers = shards.iter().map(|shard| shard.layer(media::MODEL, Some(shard.key.clone()))).collect();
        return Ok(Base::new(layers, &card));
    }
    let mut weights = None;
    let mut layers = Vec::new();
    for upload in &found {
        let card = inspect(catalog, std::slice::from_ref(upload)).await?;
        if is_projector(&card) {
            layers.push(upload.layer(media::PROJECTOR, None));
        } else if weights.is_none() {
            layers.insert(0, upload.layer(media::MODEL, None));
            weights = Some(card);
        } else {
            return Err(refused("only one model file is currently supported"));
        }
    }
    let card = weights.ok_or_else(|| refused("no files provided to convert"))?;
    Ok(Base::new(layers, &card))
}

impl Base {
    fn new(layers: Vec<Layer>, card: &ModelCard) -> Self {
        let details = details_of(card);
        let config = json!({
            "model_format": if card.format.is_empty() { "gguf" } else { card.format.as_str() },
            "model_family": details.family,
            "model_families": details.families,
            "model_type": details.parameter_size,
            "file_type": details.quantization_level,
            "architecture": "amd64",
            "os": "linux",
        });
        let Value::Object(config) = config else { unreachable!("an object literal is an object") };
        Self { layers, config, params: Map::new(), file_type: details.quantization_level, imported: Vec::new() }
    }
}

/// The files as the shards of one model, if their names say that they are.
fn in_shard_order(found: &[Upload]) -> Result<Option<Vec<Upload>>, CatalogError> {
    let Some((prefix, _, count)) = found.iter().find_map(|upload| shard_of(&upload.key)) else { return Ok(None) };
    let mut shards = Vec::with_capacity(count);
    for index in 1..=count {
        let key = format!("{prefix}-{index:05}-of-{count:05}.gguf");
        match found.iter().find(|upload| upload.key.eq_ignore_ascii_case(&key)) {
            Some(upload) => shards.push(upload.clone()),
            None => return Err(refused(format!("the shard {key:?} is missing"))),
        }
    }
    if shards.len() != found.len() {
        return Err(refused("only one model file is currently supported"));
    }
    Ok(Some(shards))
}

async fn inspect(catalog: &Catalog, files: &[Upload]) -> Result<Arc<ModelCard>, CatalogError> {
    let digests: Vec<&Digest> = files.iter().map(|file| &file.digest).collect();
    let subject = Subject {
        label: files.first().map(|file| file.key.clone()).unwrap_or_default(),
        key: subject_key(&digests),
        size_bytes: files.iter().fold(0, |sum, file| sum.saturating_add(file.size)),
        backend: Backend::Gguf,
        paths: files.iter().map(|file| file.path.clone()).collect(),
    };
    catalog.inner.inspector.card(&subject).await.map_err(CatalogError::Unreadable)
}

fn is_projector(card: &ModelCard) -> bool {
    let kind = || {
        let metadata: Value = serde_json::from_str(&card.metadata).ok()?;
        Some(metadata.get("general.type")?.as_str()?.to_owned())
    };
    card.architecture == "clip" || matches!(kind().as_deref(), Some("mmproj" | "projector"))
}

/// Writes the texts, the config and the manifest. Blocking; the lock is held.
fn commit(
    inner: &Inner,
    name: &Name,
    base: Base,
    spec: CreateSpec,
    statuses: &mut Vec<String>,
) -> Result<ollmlx_proto::ModelId, CatalogError> {
    let Base { mut layers, config, mut params, .. } = base;
    let mut texts: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut replaced: Vec<&str> = Vec::new();
    if let Some(template) = spec.template.filter(|template| !template.is_empty()) {
        replaced.extend([media::TEMPLATE, media::PROMPT]);
        texts.push((media::TEMPLATE, template.into_bytes()));
    }
    if let Some(system) = spec.system.filter(|system| !system.is_empty()) {
        replaced.push(media::SYSTEM);
        texts.push((media::SYSTEM, system.into_bytes()));
    }
    if !spec.license.is_empty() {
        replaced.push(media::LICENSE);
        texts.extend(spec.license.into_iter().map(|license| (media::LICENSE, license.into_bytes())));
    }
    if !spec.parameters.is_empty() {
        replaced.push(media::PARAMS);
        for (key, value) in spec.parameters {
            if !value.is_null() {
                params.insert(key, value);
            }
        }
        params.sort_keys();
        texts.push((media::PARAMS, line_of(&Value::Object(params))));
    }
    if !spec.messages.is_empty() {
        replaced.push(media::MESSAGES);
        let list: Vec<Value> =
            spec.messages.iter().map(|message| json!({"role": message.role, "content": message.content})).collect();
        texts.push((media::MESSAGES, line_of(&Value::Array(list))));
    }
    layers.retain(|layer| !replaced.contains(&layer.media_type.as_str()));
    statuses.extend(layers.iter().map(|layer| format!("using existing layer {}", layer.digest)));
    for (media_type, bytes) in texts {
        let (digest, created) = inner.store.put_blob(&bytes).map_err(io_error("write a layer"))?;
        statuses.push(format!("{} layer {digest}", if created { "creating new" } else { "using existing" }));
        layers.push(Layer {
            media_type: media_type.to_owned(),
            digest,
            size: bytes.len() as u64,
            from: None,
            name: None,
        });
    }
    let config = Value::Object(config).to_string();
    let (digest, _) = inner.store.put_blob(config.as_bytes()).map_err(io_error("write a config"))?;
    let config =
        Layer { media_type: media::CONFIG.to_owned(), digest, size: config.len() as u64, from: None, name: None };
    statuses.push("writing manifest".to_owned());
    inner.publish(name, &Manifest { config, layers }.to_bytes())
}

/// JSON with the line feed that Ollama's encoder leaves, so that equal texts share a blob.
fn line_of(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Whether a file's key stays below the folder it came from: no empty, `.` or `..` part.
fn is_relative(key: &str) -> bool {
    !key.contains(['\0', '\\']) && key.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Takes the store's lock and removes what a failed creation brought.
async fn withdraw(catalog: &Catalog, imported: Vec<Layer>) -> Result<(), CatalogError> {
    let (inner, guard) = (Arc::clone(&catalog.inner), catalog.lock().await);
    blocking("remove what was copied", move || {
        let _guard = guard;
        discard(&inner, &imported);
        Ok(())
    })
    .await
}

/// Removes blobs that a failed creation brought, unless another model has them by now. Blocking; the lock is held.
fn discard(inner: &Inner, imported: &[Layer]) {
    if imported.is_empty() {
        return;
    }
    inner.store.prune_layers(imported);
    inner.views.prune(&inner.store, imported);
}

async fn say(progress: &mpsc::Sender<Progress>, status: impl Into<String>) {
    // A model is made whether or not somebody listens.
    let _ = progress.send(Progress::Status(status.into())).await;
}

fn refused(message: impl Into<String>) -> CatalogError {
    CatalogError::Refused { status_hint: 400, message: message.into() }
}
