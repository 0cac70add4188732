//! A folder of safetensors files: found, checked, summed up.
//!
//! The headers are parsed here, with bounds, before MLX sees a file: names unique, shapes and byte ranges consistent,
//! nothing outside the file. Code (`*.py`) is never run and pickles are never opened. Weights are not read here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ollmlx_proto::Failure;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::config::{invalid, read_bounded};
use crate::limits::{DIMENSIONS_MAX, HEADER_BYTES_MAX, INDEX_BYTES_MAX, SHARDS_MAX, TENSORS_MAX};

/// One tensor as its header tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMeta {
    /// Element type as stored, such as `BF16`.
    pub dtype: String,
    /// As stored, slowest dimension first.
    pub shape: Vec<u64>,
    /// Bytes it takes.
    pub bytes: u64,
}

/// The checked headers of a model's files.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The folder of `config.json`.
    pub folder: PathBuf,
    /// The weight files, in order.
    pub shards: Vec<PathBuf>,
    /// Every tensor by name.
    pub tensors: BTreeMap<String, TensorMeta>,
}

impl Checkpoint {
    /// Finds and checks the files of a model: `paths` is its folder, or files in one folder.
    ///
    /// # Errors
    /// What is wrong, with the name of the file.
    pub fn open(paths: &[PathBuf]) -> Result<Self, Failure> {
        let first = paths.first().ok_or_else(|| invalid("no model path was given"))?;
        let folder = if first.is_dir() {
            first.clone()
        } else {
            first.parent().map(Path::to_path_buf).ok_or_else(|| invalid("the model path has no folder"))?
        };
        let shards = find_shards(&folder)?;
        let mut tensors = BTreeMap::new();
        for shard in &shards {
            read_header(shard, &mut tensors)?;
        }
        if tensors.is_empty() {
            return Err(invalid("the safetensors files hold no tensors"));
        }
        Ok(Self { folder, shards, tensors })
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.values().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes))
    }
}

/// The name that MLX's own tools give a tensor: Ollama writes the factors of a packed weight `x.weight.scale` and
/// `x.weight.bias`.
#[must_use]
pub fn usual_name(name: &str) -> String {
    for (theirs, usual) in [(".weight.scale", ".scales"), (".weight.bias", ".biases")] {
        if let Some(path) = name.strip_suffix(theirs) {
            return format!("{path}{usual}");
        }
    }
    name.to_owned()
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The index names the shards where there is one; else every `model*.safetensors`, else every `*.safetensors`.
fn find_shards(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let index = folder.join("model.safetensors.index.json");
    if let Some(bytes) = read_bounded(&index, INDEX_BYTES_MAX)? {
        return indexed_shards(folder, &bytes);
    }
    let entries = std::fs::read_dir(folder)
        .map_err(|error| invalid("the model folder can't be read").with_detail(error.to_string()))?;
    let mut all = Vec::new();
    let mut foreign = None;
    for entry in entries {
        let entry = entry.map_err(|error| invalid("the model folder can't be read").with_detail(error.to_string()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") && !name.starts_with('.') {
            all.push(entry.path());
        } else if name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth") || name.ends_with(".npz") {
            foreign = Some(name);
        }
        if all.len() > SHARDS_MAX {
            return Err(invalid(format!("more than {SHARDS_MAX} safetensors files")));
        }
    }
    let model: Vec<_> = all.iter().filter(|path| file_name(path).starts_with("model")).cloned().collect();
    let mut shards = if model.is_empty() { all } else { model };
    shards.sort();
    if let (true, Some(name)) = (shards.is_empty(), foreign) {
        return Err(invalid(format!("{name} is not read (it can hold code), convert the model to safetensors")));
    }
    if shards.is_empty() {
        return Err(invalid("the folder holds no safetensors file"));
    }
    check_series(&shards)?;
    Ok(shards)
}

fn indexed_shards(folder: &Path, bytes: &[u8]) -> Result<Vec<PathBuf>, Failure> {
    let index: Value = serde_json::from_slice(bytes)
        .map_err(|error| invalid("model.safetensors.index.json is no valid JSON").with_detail(error.to_string()))?;
    let map = index
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| invalid("model.safetensors.index.json has no weight_map"))?;
    let mut names = std::collections::BTreeSet::new();
    for name in map.values() {
        let name = name.as_str().filter(|name| is_plain_name(name)).ok_or_else(|| {
            invalid("model.safetensors.index.json names a shard that is not a safetensors file of its folder")
        })?;
        names.insert(name.to_owned());
        if names.len() > SHARDS_MAX {
            return Err(invalid(format!("more than {SHARDS_MAX} safetensors files")));
        }
    }
    for name in &names {
        if !folder.join(name).is_file() {
            return Err(invalid(format!("the shard {name} is missing")));
        }
    }
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

fn is_plain_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

/// Without an index, `model-00002-of-00003.safetensors` tells what else must be there.
fn check_series(shards: &[PathBuf]) -> Result<(), Failure> {
    let names: Vec<String> = shards.iter().map(|path| file_name(path)).collect();
    for name in &names {
        let Some((stem, count)) = name.strip_suffix(".safetensors").and_then(|name| name.rsplit_once("-of-")) else {
            continue;
        };
        let Some((base, number)) = stem.rsplit_once('-') else { continue };
        let Ok(total) = count.parse::<usize>() else { continue };
        if total > SHARDS_MAX {
            return Err(invalid(format!("{name} speaks of more than {SHARDS_MAX} shards")));
        }
        for part in 1..=total {
            let want = format!("{base}-{part:0width$}-of-{count}.safetensors", width = number.len());
            if !names.contains(&want) {
                return Err(invalid(format!("the shard {want} is missing")));
            }
        }
    }
    Ok(())
}

fn read_header(path: &Path, tensors: &mut BTreeMap<String, TensorMeta>) -> Result<(), Failure> {
    let name = file_name(path);
    let fault = |what: &str| invalid(format!("{name}: {what}"));
    let read_fault = |error: std::io::Error| invalid(format!("{name} can't be read")).with_detail(error.to_string());
    let mut file = File::open(path).map_err(read_fault)?;
    let metadata = file.metadata().map_err(read_fault)?;
    if !metadata.is_file() {
        return Err(fault("not a file"));
    }
    let file_bytes = metadata.len();
    let mut length = [0_u8; 8];
    file.read_exact(&mut length).map_err(|_| fault("too short for a safetensors file"))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_BYTES_MAX {
        return Err(fault(&format!("its header is larger than {HEADER_BYTES_MAX} bytes")));
    }
    if header_bytes.checked_add(8).is_none_or(|end| end > file_bytes) {
        return Err(fault("its header is longer than the file"));
    }
    let mut header = Vec::new();
    file.take(header_bytes).read_to_end(&mut header).map_err(read_fault)?;
    let parsed = parse_header(&header).map_err(|error| fault("bad safetensors header").with_detail(error))?;
    check_ranges(&parsed, file_bytes - 8 - header_bytes).map_err(|what| fault(&what))?;
    for (tensor, (meta, _)) in parsed {
        let tensor = usual_name(&tensor);
        if tensors.insert(tensor.clone(), meta).is_some() {
            return Err(fault(&format!("the tensor {tensor} stands in two files")));
        }
        if tensors.len() > TENSORS_MAX {
            return Err(fault(&format!("more than {TENSORS_MAX} tensors")));
        }
    }
    Ok(())
}

type Header = BTreeMap<String, (TensorMeta, (u64, u64))>;

fn parse_header(bytes: &[u8]) -> Result<Header, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let header = deserializer.deserialize_map(HeaderVisitor).map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok(header)
}

/// Streams the header, so that a duplicate name is seen and the count is bounded before anything is kept.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        use serde::de::Error as _;
        let mut header = Header::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                // MLX itself writes null where there is none.
                map.next_value::<Option<BTreeMap<String, String>>>()
                    .map_err(|_| A::Error::custom("__metadata__ is not a map of texts"))?;
                continue;
            }
            if header.len() >= TENSORS_MAX {
                return Err(A::Error::custom("too many tensors"));
            }
            let raw = map.next_value::<RawTensor>()?;
            let entry = raw.check().map_err(|what| A::Error::custom(format!("{name}: {what}")))?;
            if header.insert(name.clone(), entry).is_some() {
                return Err(A::Error::custom(format!("the tensor {name} is named twice")));
            }
        }
        Ok(header)
    }
}

struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    range: (u64, u64),
}

impl<'de> serde::Deserialize<'de> for RawTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = RawTensor;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a tensor with dtype, shape and data_offsets")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
                use serde::de::Error as _;
                let (mut dtype, mut shape, mut range) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "dtype" => dtype = Some(map.next_value()?),
                        "shape" => shape = Some(map.next_value()?),
                        "data_offsets" => range = Some(map.next_value()?),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                let missing = A::Error::missing_field;
                Ok(RawTensor {
                    dtype: dtype.ok_or_else(|| missing("dtype"))?,
                    shape: shape.ok_or_else(|| missing("shape"))?,
                    range: range.ok_or_else(|| missing("data_offsets"))?,
                })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl RawTensor {
    fn check(self) -> Result<(TensorMeta, (u64, u64)), String> {
        let size = match self.dtype.as_str() {
            "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 1_u64,
            "U16" | "I16" | "F16" | "BF16" => 2,
            "U32" | "I32" | "F32" => 4,
            "U64" | "I64" | "F64" | "C64" => 8,
            other => return Err(format!("unknown element type {}", other.chars().take(16).collect::<String>())),
        };
        if self.shape.len() > DIMENSIONS_MAX {
            return Err(format!("more than {DIMENSIONS_MAX} dimensions"));
        }
        // MLX counts a dimension in 32 bits.
        if self.shape.iter().any(|&dimension| dimension > i32::MAX as u64) {
            return Err("a dimension is too large".to_owned());
        }
        let bytes = self.shape.iter().try_fold(size, |product, &dimension| product.checked_mul(dimension));
        let (begin, end) = self.range;
        let stored = end.checked_sub(begin).ok_or("its range ends before it begins")?;
        if bytes != Some(stored) {
            return Err("its shape and its range disagree".to_owned());
        }
        Ok((TensorMeta { dtype: self.dtype, shape: self.shape, bytes: stored }, self.range))
    }
}

fn check_ranges(header: &Header, data_bytes: u64) -> Result<(), String> {
    let mut ranges: Vec<(u64, u64)> = header.values().map(|(_, range)| *range).filter(|(a, b)| a != b).collect();
    ranges.sort_unstable();
    let mut end_before = 0;
    for (begin, end) in ranges {
        if begin < end_before {
            return Err("two tensors overlap".to_owned());
        }
        if end > data_bytes {
            return Err("a tensor ends after the file (is the download complete?)".to_owned());
        }
        end_before = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, header: &str, data: &[u8]) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        std::fs::write(folder.join(name), bytes).unwrap();
    }

    fn open(folder: &Path) -> Result<Checkpoint, Failure> {
        Checkpoint::open(&[folder.to_path_buf()])
    }

    #[test]
    fn a_good_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let header = r#"{"__metadata__":{"format":"mlx"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
        write(folder.path(), "model.safetensors", header, &[0; 24]);
        let checkpoint = open(folder.path()).unwrap();
        assert_eq!(checkpoint.tensors["a"].shape, [2, 3]);
        assert_eq!(checkpoint.weight_bytes(), 24);
    }

    #[test]
    fn bad_headers_are_refused() {
        let deep = "[".repeat(100_000);
        let cases = [
            "",
            "[]",
            "{",
            "{\"a\":1}",
            deep.as_str(),
            r#"{"__metadata__":{"a":1}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}"#,
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        ];
        for header in cases {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), "model.safetensors", header, &[0; 8]);
            let failure = open(folder.path()).unwrap_err();
            assert!(failure.public.contains("safetensors"), "{}: {failure:?}", &header[..header.len().min(60)]);
        }
    }

    #[test]
    fn a_lying_header_length_is_refused_without_allocating() {
        for length in [1_u64 << 62, u64::MAX, HEADER_BYTES_MAX + 1, 100] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("model.safetensors"), length.to_le_bytes()).unwrap();
            assert!(open(folder.path()).unwrap_err().public.contains("header"), "{length}");
        }
    }

    #[test]
    fn a_missing_shard_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        write(folder.path(), "model-00001-of-00002.safetensors", header, &[0]);
        assert!(open(folder.path()).unwrap_err().public.contains("model-00002-of-00002.safetensors"));
        std::fs::write(
            folder.path().join("model.safetensors.index.json"),
            r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#,
        )
        .unwrap();
        assert!(open(folder.path()).unwrap_err().public.contains("model-00002-of-00002.safetensors"));
    }

    #[test]
    fn an_index_can_not_leave_its_folder_and_pickles_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
        assert!(open(folder.path()).unwrap_err().public.contains("pytorch_model.bin"));
        std::fs::write(
            folder.path().join("model.safetensors.index.json"),
            r#"{"weight_map":{"a":"../../etc/x.safetensors"}}"#,
        )
        .unwrap();
        assert!(open(folder.path()).is_err());
    }
}
