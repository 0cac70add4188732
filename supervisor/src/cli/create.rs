//! `ollmlx create`: makes a model of a Modelfile. Files are hashed and uploaded first, then the server puts them together.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::args::{CreateArgs, exactly};
use super::client::Client;
use super::error::CliError;
use super::progress::{Spinner, TransferProgress};
use super::transfer;
use crate::catalog::modelfile::{self, Modelfile};
use crate::os::stderr::tell;

/// Bytes hashed at a time.
const HASH_CHUNK_BYTES: usize = 1024 * 1024;
/// How often the progress of an upload is shown.
const UPLOAD_TICK_MS: u64 = 100;
/// Files of a model folder that belong to the model.
const FOLDER_EXTENSIONS: [&str; 5] = ["safetensors", "json", "model", "jinja", "txt"];
/// Weights in formats that can hold code, which nothing here reads.
const PICKLE_EXTENSIONS: [&str; 4] = ["bin", "pt", "pth", "ckpt"];

/// Reads the Modelfile, uploads what it names, and creates.
///
/// # Errors
/// A Modelfile or file that can't be used, no server, or its refusal.
pub async fn run(client: &Client, args: CreateArgs) -> Result<(), CliError> {
    let [name] = exactly(args.names)?;
    let (text, folder) = read_modelfile(args.file.as_deref())?;
    let modelfile = modelfile::parse(&text).map_err(|error| CliError::Modelfile(error.to_string()))?;
    for warning in &modelfile.warnings {
        tell(format_args!("{warning}"));
    }
    client.heartbeat().await?;
    let mut body = request_of(&modelfile);
    body.insert("model".to_owned(), json!(name));
    if let Some(level) = args.quantize {
        body.insert("quantize".to_owned(), json!(level));
    }
    let spinner = Spinner::start("gathering model components");
    let (from, files) = gather(&modelfile.from, &folder)?;
    let (adapter_names, adapters) = gather(&modelfile.adapters, &folder)?;
    let (_, drafts) = gather(&modelfile.draft, &folder)?;
    drop(spinner);
    if let Some(name) = adapter_names.first() {
        return Err(CliError::Modelfile(format!("adapter {name:?} is not a file")));
    }
    if let Some(name) = from.first() {
        body.insert("from".to_owned(), json!(name));
    }
    for (key, paths) in [("files", files), ("adapters", adapters), ("draft_files", drafts)] {
        if !paths.is_empty() {
            body.insert(key.to_owned(), upload_all(client, &paths).await?);
        }
    }
    transfer::follow(client, "/api/create", &Value::Object(body)).await
}

/// The Modelfile's text, and the folder its paths start from. Without `-f`, and without a file called Modelfile, the
/// model is the folder itself.
fn read_modelfile(file: Option<&str>) -> Result<(String, PathBuf), CliError> {
    let path = Path::new(file.unwrap_or("Modelfile"));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = modelfile::decode(&bytes).map_err(|error| CliError::Modelfile(error.to_string()))?;
            Ok((text, folder.to_owned()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => match file {
            Some(_) => Err(CliError::Usage("specified Modelfile wasn't found".to_owned())),
            None => Ok(("FROM .".to_owned(), folder.to_owned())),
        },
        Err(error) => Err(file_error(path, error)),
    }
}

/// Everything of `/api/create` that needs no file.
pub(super) fn request_of(modelfile: &Modelfile) -> Map<String, Value> {
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
    if let Some(template) = &modelfile.template {
        put("template", json!(template));
    }
    let texts = [
        ("system", &modelfile.system),
        ("renderer", &modelfile.renderer),
        ("parser", &modelfile.parser),
        ("requires", &modelfile.requires),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            put(key, json!(text));
        }
    }
    if !modelfile.license.is_empty() {
        put("license", json!(modelfile.license));
    }
    if !modelfile.parameters.is_empty() {
        put("parameters", Value::Object(modelfile.parameters.clone()));
    }
    if !modelfile.messages.is_empty() {
        let messages = modelfile.messages.iter();
        put("messages", messages.map(|message| json!({"role": message.role, "content": message.content})).collect());
    }
    body
}

/// Splits what FROM or ADAPTER lines say into names of models and files on this machine.
fn gather(words: &[String], folder: &Path) -> Result<(Vec<String>, Vec<PathBuf>), CliError> {
    let mut names = Vec::new();
    let mut files = Vec::new();
    for word in words {
        let path = match word.strip_prefix("~/").zip(std::env::home_dir()) {
            Some((rest, home)) => home.join(rest),
            None => folder.join(word),
        };
        if path.is_file() {
            files.push(path);
        } else if path.is_dir() {
            files.extend(folder_files(&path)?);
        } else if super::model_path::looks_like_path(word) || word.ends_with(".gguf") {
            return Err(CliError::Usage(format!("{}: no such file or directory", path.display())));
        } else {
            names.push(word.clone());
        }
    }
    Ok((names, files))
}

/// The files of a model folder: the GGUF files where there are any, else those of a checkpoint.
fn folder_files(folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let entries = std::fs::read_dir(folder).map_err(|error| file_error(folder, error))?;
    let mut all: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file()).collect();
    all.retain(|path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b".")));
    all.sort();
    let has = |path: &PathBuf, extension: &str| path.extension().is_some_and(|found| found == extension);
    let gguf: Vec<PathBuf> = all.iter().filter(|path| has(path, "gguf")).cloned().collect();
    let any = |extension: &str| all.iter().any(|path| has(path, extension));
    if !any("gguf") && !any("safetensors") && PICKLE_EXTENSIONS.iter().any(|extension| any(extension)) {
        let folder = folder.display();
        return Err(CliError::Modelfile(format!(
            "{folder} has only pickled weights, which are not read since they can hold code; to convert them: \
             mlx_lm.convert --hf-path {folder}"
        )));
    }
    let files = match gguf.is_empty() {
        false => gguf,
        true => all.into_iter().filter(|path| FOLDER_EXTENSIONS.iter().any(|extension| has(path, extension))).collect(),
    };
    if files.is_empty() {
        return Err(CliError::Modelfile(format!("no model files in {}", folder.display())));
    }
    Ok(files)
}

/// Uploads files that the server does not have, and returns `{name: digest}`.
async fn upload_all(client: &Client, paths: &[PathBuf]) -> Result<Value, CliError> {
    let mut files = Map::new();
    for path in paths {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let digest = digest_of(path.clone(), &name).await?;
        let blob = format!("/api/blobs/{digest}");
        if client.head(&blob).await? == StatusCode::NOT_FOUND {
            upload(client, &blob, path, &name).await?;
        }
        files.insert(name, json!(digest));
    }
    Ok(Value::Object(files))
}

/// `sha256:…` of a file, hashed off the event loop.
async fn digest_of(path: PathBuf, name: &str) -> Result<String, CliError> {
    let _spinner = Spinner::start(&format!("hashing {name}"));
    let hash = tokio::task::spawn_blocking(move || hash_file(&path));
    hash.await.map_err(|error| CliError::System { step: "hash a file", source: error.into() })?
}

fn hash_file(path: &Path) -> Result<String, CliError> {
    let mut file = std::fs::File::open(path).map_err(|error| file_error(path, error))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASH_CHUNK_BYTES];
    loop {
        match file.read(&mut buffer).map_err(|error| file_error(path, error))? {
            0 => break,
            length => hasher.update(&buffer[..length]),
        }
    }
    Ok(format!("sha256:{:x}", hasher.finalize()))
}

async fn upload(client: &Client, blob: &str, path: &Path, name: &str) -> Result<(), CliError> {
    let file = tokio::fs::File::open(path).await.map_err(|error| file_error(path, error))?;
    let size_bytes = file.metadata().await.map_err(|error| file_error(path, error))?.len();
    let sent_bytes = Arc::new(AtomicU64::new(0));
    let status = format!("copying file {name}");
    let mut progress = TransferProgress::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(UPLOAD_TICK_MS));
    let sending = client.upload(blob, file, size_bytes, Arc::clone(&sent_bytes));
    let mut sending = std::pin::pin!(sending);
    let end = loop {
        tokio::select! {
            end = &mut sending => break end,
            _ = ticks.tick() => progress.transfer(&status, sent_bytes.load(Ordering::Relaxed), size_bytes),
        }
    };
    if end.is_ok() {
        progress.transfer(&status, size_bytes, size_bytes);
    }
    progress.finish();
    end
}

fn file_error(path: &Path, source: std::io::Error) -> CliError {
    CliError::File { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modelfile_that_was_named_must_exist() {
        let error = read_modelfile(Some("/nonexistent/Modelfile")).unwrap_err();
        assert_eq!(error.to_string(), "specified Modelfile wasn't found");
    }

    #[test]
    fn names_files_and_folders_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("m.gguf"), b"x").unwrap();
        std::fs::create_dir(folder.path().join("mlx")).unwrap();
        for name in ["model.safetensors", "config.json", "README.md"] {
            std::fs::write(folder.path().join("mlx").join(name), b"x").unwrap();
        }
        let words = ["llama3".to_owned(), "./m.gguf".to_owned(), "mlx".to_owned()];
        let (names, files) = gather(&words, folder.path()).unwrap();
        assert_eq!(names, ["llama3"]);
        let files: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(files, ["m.gguf", "config.json", "model.safetensors"]);
        assert!(gather(&["./gone.gguf".to_owned()], folder.path()).is_err());
    }

    #[test]
    fn a_file_s_digest_is_sha256() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, b"abc").unwrap();
        let digest = hash_file(&path).unwrap();
        assert_eq!(digest, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
