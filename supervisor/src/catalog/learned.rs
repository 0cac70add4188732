//! What models took, by the count of earlier processes: a small file beside the cards, and the correction of estimates
//! that follows from it.
//!
//! Kept is the most that was measured for a model loaded in one way, together with the estimate of that time: another
//! estimate means another formula, and what was measured then says nothing. A process that takes less lets it fade.
//!
//! Decision: an estimate is only ever raised. Rejected: lowering it as well, since a process that had little to do says
//! nothing about what full windows take, and what is set aside must hold when they are full.
//!
//! The file may be missing, damaged or hostile: it is then ignored. At most [`LEARNED_MAX`] entries, the latest.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use ollmlx_proto::ModelId;
use ollmlx_proto::limits::{LEARNED_BYTES_MAX, LEARNED_MAX};
use serde_json::{Value, json};

use super::store::read_bounded;

/// Format of the file; another number is not read.
const VERSION: u64 = 1;
/// Most that an estimate is raised to, in thousandths.
pub const PERMILLE_MAX: u32 = 2000;
/// Part of the difference that is forgotten with a process that took less.
const FADE: u64 = 8;
/// Longest word for a type of caches.
const KV_TYPE_BYTES_MAX: usize = 16;

/// One way to load a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Which.
    pub model: ModelId,
    /// Slots.
    pub slots: u16,
    /// Tokens of a slot's window.
    pub context_tokens: u32,
    /// Tokens of a pass.
    pub batch_tokens: u32,
    /// Type of the caches.
    pub kv_type: String,
    /// Estimated bytes.
    pub estimate: u64,
}

/// What is known, latest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned(Vec<(Loaded, u64)>);

impl Learned {
    /// From the file. Blocking.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let bytes = match read_bounded(path, LEARNED_BYTES_MAX) {
            Ok(file) => file.bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what was learned of memory can't be read and is ignored");
                return Self::default();
            }
        };
        Self::parse(&bytes).unwrap_or_else(|| {
            tracing::warn!(path = %path.display(), "what was learned of memory is damaged and is ignored");
            Self::default()
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        if value["version"] != json!(VERSION) {
            return None;
        }
        let entries = value["models"].as_array()?;
        let mut known = Self::default();
        for (loaded, bytes) in entries.iter().filter_map(entry) {
            known.put(loaded, bytes);
        }
        Some(known)
    }

    /// To the file, in one step. Blocking.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let models: Vec<Value> = self.0.iter().map(|(loaded, bytes)| told(loaded, *bytes)).collect();
        let mut file = tempfile::Builder::new().prefix(".learned-").tempfile_in(folder)?;
        file.write_all(json!({"version": VERSION, "models": models}).to_string().as_bytes())?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Most bytes that were measured for it.
    #[must_use]
    pub fn measured(&self, loaded: &Loaded) -> Option<u64> {
        self.0.iter().find(|(known, _)| known == loaded).map(|(_, bytes)| *bytes)
    }

    /// What to set aside, in thousandths of the estimate: from 1000 to [`PERMILLE_MAX`].
    #[must_use]
    pub fn permille(&self, loaded: &Loaded) -> u32 {
        let Some(measured) = self.measured(loaded).filter(|_| loaded.estimate > 0) else { return 1000 };
        let permille = (u128::from(measured) * 1000).div_ceil(u128::from(loaded.estimate));
        u32::try_from(permille).unwrap_or(PERMILLE_MAX).clamp(1000, PERMILLE_MAX)
    }

    /// A process took so much. Says whether that is news.
    pub fn took(&mut self, loaded: &Loaded, bytes: u64) -> bool {
        let news = bytes > self.measured(loaded).unwrap_or(0);
        if news {
            self.put(loaded.clone(), bytes);
        }
        news
    }

    /// A process has ended that took so much at most. Says whether that is news.
    pub fn ended(&mut self, loaded: &Loaded, bytes: u64) -> bool {
        let Some(known) = self.measured(loaded).filter(|known| *known > bytes) else { return self.took(loaded, bytes) };
        let faded = known - (known - bytes) / FADE;
        self.put(loaded.clone(), faded);
        faded != known
    }

    fn put(&mut self, loaded: Loaded, bytes: u64) {
        let same = |known: &Loaded| Loaded { estimate: 0, ..known.clone() } == Loaded { estimate: 0, ..loaded.clone() };
        self.0.retain(|(known, _)| !same(known));
        self.0.push((loaded, bytes));
        let over = self.0.len().saturating_sub(LEARNED_MAX);
        self.0.drain(..over);
    }
}

fn told(loaded: &Loaded, bytes: u64) -> Value {
    let Loaded { model, slots, context_tokens, batch_tokens, kv_type, estimate } = loaded;
    json!({"model": model.0, "slots": slots, "context_tokens": context_tokens, "batch_tokens": batch_tokens,
        "kv_type": kv_type, "estimated_bytes": estimate, "measured_bytes": bytes})
}

fn entry(value: &Value) -> Option<(Loaded, u64)> {
    let number = |key: &str| value[key].as_u64().filter(|number| *number > 0);
    let text = |key: &str| value[key].as_str();
    let model = text("model").filter(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    let loaded = Loaded {
        model: ModelId(model.to_owned()),
        slots: u16::try_from(number("slots")?).ok()?,
        context_tokens: u32::try_from(number("context_tokens")?).ok()?,
        batch_tokens: u32::try_from(number("batch_tokens")?).ok()?,
        kv_type: text("kv_type").filter(|word| word.len() <= KV_TYPE_BYTES_MAX)?.to_owned(),
        estimate: number("estimated_bytes")?,
    };
    Some((loaded, number("measured_bytes")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(number: usize, estimate: u64) -> Loaded {
        let model = ModelId(format!("{number:064x}"));
        Loaded { model, slots: 4, context_tokens: 4096, batch_tokens: 512, kv_type: "f16".to_owned(), estimate }
    }

    #[test]
    fn the_most_that_was_measured_raises_the_estimate_within_bounds() {
        let mut learned = Learned::default();
        let model = loaded(1, 1000);
        assert_eq!(learned.permille(&model), 1000);
        assert!(learned.took(&model, 700) && learned.permille(&model) == 1000, "it is never lowered");
        assert!(learned.took(&model, 1201) && !learned.took(&model, 1200));
        assert_eq!(learned.permille(&model), 1201);
        assert!(learned.took(&model, u64::MAX));
        assert_eq!(learned.permille(&model), PERMILLE_MAX);
        assert_eq!(learned.permille(&loaded(1, 1001)), 1000, "another estimate is another formula");
        assert_eq!(learned.permille(&Loaded { slots: 1, ..model }), 1000, "another way to load it");
    }

    #[test]
    fn what_is_not_seen_again_fades() {
        let mut learned = Learned::default();
        let model = loaded(1, 1000);
        assert!(learned.ended(&model, 1800));
        assert!(learned.ended(&model, 1000));
        assert_eq!(learned.measured(&model), Some(1700));
        for _ in 0..100 {
            learned.ended(&model, 1000);
        }
        assert!(learned.permille(&model) <= 1007 && !learned.ended(&model, 1000));
    }

    #[test]
    fn it_comes_back_from_the_file_and_the_oldest_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/learned.json");
        assert_eq!(Learned::read(&path), Learned::default());
        let mut learned = Learned::default();
        for number in 0..=LEARNED_MAX {
            learned.took(&loaded(number, 1000), 1100);
        }
        assert_eq!((learned.measured(&loaded(0, 1000)), learned.measured(&loaded(1, 1000))), (None, Some(1100)));
        learned.write(&path).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < LEARNED_BYTES_MAX, "it may be as large as it can get");
        assert_eq!(Learned::read(&path), learned);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_damaged_or_hostile_file_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned.json");
        let good = told(&loaded(1, 1000), 1500);
        let mut strange = vec![good.clone()];
        for (key, value) in [
            ("model", json!("../../etc/passwd")),
            ("slots", json!(70_000)),
            ("context_tokens", json!(-1)),
            ("kv_type", json!("x".repeat(1000))),
            ("measured_bytes", json!(1e300)),
            ("estimated_bytes", json!(0)),
        ] {
            let mut bad = good.clone();
            bad["model"] = json!(format!("{:064x}", 2));
            bad[key] = value;
            strange.push(bad);
        }
        strange.extend([json!(null), json!([]), json!("x")]);
        fs::write(&path, json!({"version": 1, "models": strange}).to_string()).unwrap();
        assert_eq!(Learned::read(&path).0, [(loaded(1, 1000), 1500)], "what makes sense is kept");
        let deep = "[".repeat(100_000);
        for text in ["", "{", "null", "{\"version\":2,\"models\":[]}", "{\"version\":1}", "\u{0}\u{ff}", &deep] {
            fs::write(&path, text).unwrap();
            assert_eq!(Learned::read(&path), Learned::default(), "{text:.20}");
        }
        fs::write(&path, " ".repeat(usize::try_from(LEARNED_BYTES_MAX).unwrap() + 1)).unwrap();
        assert_eq!(Learned::read(&path), Learned::default());
    }
}
