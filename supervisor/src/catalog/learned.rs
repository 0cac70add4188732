//! What models took, by the count of earlier processes: a small file beside the cards, and the correction of estimates
//! that follows from it.
//!
//! Kept is the most that was measured for a model loaded in one way, together with the estimate of that time: another
//! estimate means another formula, and what was measured then says nothing. A process that takes less lets it fade. For a
//! way that was never measured, the latest other one counts.
//!
//! Decision: an estimate is only ever raised. Rejected: lowering it as well, since a process that had little to do says
//! nothing about what full windows take, and what is set aside must hold when they are full.
//!
//! Decision: only processes that ended as they were asked to teach something, and what was learned is no reason to refuse a
//! model whose estimate fits (see `scheduler::fit`). Rejected: learning from all, with which one leak makes a model
//! unloadable for good, since nothing that doesn't run can fade.
//!
//! The file may be missing, damaged or hostile: it is then ignored. At most [`LEARNED_MAX`] entries, the latest.

use std::io::{self, Write};
use std::path::Path;

use crate::limits::{LEARNED_BYTES_MAX, LEARNED_MAX};
use ollmlx_proto::ModelId;
use serde_json::{Value, json};

use crate::os::folder::{Folder, read_bounded};

/// Format of the file; another number is not read.
const VERSION: u64 = 1;
/// Most that is added to an estimate, in thousandths.
const ADDED_PERMILLE_MAX: u32 = 1000;
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

/// What is added to an estimate, since earlier processes took more than theirs. Both bounds hold, so that it is exact for
/// the way to load that it comes from, in proportion for smaller ones, and no more in bytes for larger ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Correction {
    /// At most this part of the estimate, in thousandths.
    pub permille: u32,
    /// At most this many bytes.
    pub bytes: u64,
}

impl Correction {
    fn of(loaded: &Loaded, measured: u64) -> Self {
        let bytes = measured.saturating_sub(loaded.estimate);
        let permille = (u128::from(bytes) * 1000).div_ceil(u128::from(loaded.estimate.max(1)));
        Self { permille: u32::try_from(permille).unwrap_or(u32::MAX).min(ADDED_PERMILLE_MAX), bytes }
    }

    /// Bytes to add to this estimate.
    #[must_use]
    pub fn on(self, estimate: u64) -> u64 {
        let part = u128::from(estimate) * u128::from(self.permille) / 1000;
        u64::try_from(part).unwrap_or(u64::MAX).min(self.bytes)
    }
}

/// What is known, latest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned(Vec<(Loaded, u64)>);

impl Learned {
    /// From the file. Blocking.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let bytes = match bytes_of(path) {
            Ok(bytes) => bytes,
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
        let (folder, name) = split(path)?;
        let folder = Folder::make(folder)?;
        let is_ours = match bytes_of(path) {
            Ok(bytes) => Self::parse(&bytes).is_some(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        // What was not written by a server is somebody's, and is kept beside.
        if !is_ours {
            let kept = format!("{name}.kept");
            if !folder.names_nothing(&kept) {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} and {kept} are not ours")));
            }
            folder.rename(name, &kept)?;
        }
        let models: Vec<Value> = self.0.iter().map(|(loaded, bytes)| told(loaded, *bytes)).collect();
        let mut file = folder.draft(".learned-", "")?;
        file.write_all(json!({"version": VERSION, "models": models}).to_string().as_bytes())?;
        file.publish(name)
    }

    /// Most bytes that were measured for it.
    #[must_use]
    pub fn measured(&self, loaded: &Loaded) -> Option<u64> {
        self.0.iter().find(|(known, _)| known == loaded).map(|(_, bytes)| *bytes)
    }

    /// What to add to the estimate. Where nothing was measured for just this way to load, the latest other one of the same
    /// model counts whose estimate `is_current`, that is made by the present formula.
    #[must_use]
    pub fn correction(&self, loaded: &Loaded, is_current: impl Fn(&Loaded) -> bool) -> Correction {
        let alike = |known: &Loaded| {
            let Loaded { slots, context_tokens, estimate, .. } = *known;
            Loaded { slots, context_tokens, estimate, ..loaded.clone() } == *known && is_current(known)
        };
        let exact = self.0.iter().find(|(known, _)| known == loaded);
        let found = exact.or_else(|| self.0.iter().rev().find(|(known, _)| alike(known)));
        found.map_or_else(Correction::default, |(known, bytes)| Correction::of(known, *bytes))
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

    /// What another server has learned in the meantime, but for some models. Says whether that is news.
    pub fn adopt(&mut self, theirs: Self, but_for: &[ModelId]) -> bool {
        let wanted = theirs.0.into_iter().filter(|(loaded, _)| !but_for.contains(&loaded.model));
        wanted.fold(false, |news, (loaded, bytes)| self.took(&loaded, bytes) || news)
    }

    /// Whatever is known of a model is out of date. Says whether that is news.
    pub fn forget(&mut self, model: &ModelId) -> bool {
        let before = self.0.len();
        self.0.retain(|(known, _)| known.model != *model);
        self.0.len() != before
    }

    fn put(&mut self, loaded: Loaded, bytes: u64) {
        let same = |known: &Loaded| Loaded { estimate: 0, ..known.clone() } == Loaded { estimate: 0, ..loaded.clone() };
        self.0.retain(|(known, _)| !same(known));
        self.0.push((loaded, bytes));
        let over = self.0.len().saturating_sub(LEARNED_MAX);
        self.0.drain(..over);
    }
}

/// The file's bytes. Blocking.
fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    let (folder, name) = split(path)?;
    let (file, _) = Folder::open(folder)?.find_file(Path::new(name))?.open()?;
    read_bounded(file, LEARNED_BYTES_MAX)
}

/// The folder of the file, and its name there.
fn split(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    path.parent().zip(name).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
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
    use std::fs;

    use super::*;

    fn loaded(number: usize, estimate: u64) -> Loaded {
        let model = ModelId(format!("{number:064x}"));
        Loaded { model, slots: 4, context_tokens: 4096, batch_tokens: 512, kv_type: "f16".to_owned(), estimate }
    }

    fn need(learned: &Learned, loaded: &Loaded) -> u64 {
        loaded.estimate + learned.correction(loaded, |known| known.estimate != 999).on(loaded.estimate)
    }

    #[test]
    fn the_most_that_was_measured_raises_the_estimate_within_bounds() {
        let mut learned = Learned::default();
        let model = loaded(1, 1000);
        assert_eq!(need(&learned, &model), 1000);
        assert!(learned.took(&model, 700) && need(&learned, &model) == 1000, "it is never lowered");
        assert!(learned.took(&model, 1201) && !learned.took(&model, 1200));
        assert_eq!(need(&learned, &model), 1201);
        assert!(learned.took(&model, u64::MAX));
        assert_eq!(need(&learned, &model), 2000);
        assert!(learned.forget(&model.model) && !learned.forget(&model.model));
        assert_eq!(need(&learned, &model), 1000);
    }

    #[test]
    fn what_a_predecessor_learned_is_taken_over_where_it_is_more_and_not_forgotten() {
        let (mut ours, mut theirs) = (Learned::default(), Learned::default());
        ours.took(&loaded(1, 1000), 1500);
        for (model, bytes) in [(1, 1200), (2, 1100), (3, 1300)] {
            theirs.took(&loaded(model, 1000), bytes);
        }
        assert!(ours.adopt(theirs.clone(), &[loaded(3, 1000).model]));
        assert_eq!([1, 2, 3].map(|model| need(&ours, &loaded(model, 1000))), [1500, 1100, 1000]);
        assert!(!ours.adopt(theirs, &[loaded(3, 1000).model]));
    }

    #[test]
    fn what_was_never_measured_goes_by_the_latest_other_way_to_load() {
        let mut learned = Learned::default();
        let small = Loaded { slots: 1, ..loaded(1, 1000) };
        learned.took(&Loaded { slots: 8, ..loaded(1, 9000) }, 18_000);
        learned.took(&small, 1100);
        assert_eq!(need(&learned, &loaded(1, 4000)), 4100, "as much more for a larger one");
        assert_eq!(need(&learned, &Loaded { slots: 2, ..loaded(1, 500) }), 550, "in proportion for a smaller one");
        assert_eq!(need(&learned, &small), 1100);
        assert_eq!(
            need(&learned, &Loaded { kv_type: "q8_0".to_owned(), ..small.clone() }),
            1000,
            "another engine's way"
        );
        assert_eq!(need(&learned, &loaded(2, 1000)), 1000, "another model");
        learned.took(&Loaded { slots: 2, ..loaded(1, 999) }, 1998);
        assert_eq!(need(&learned, &loaded(1, 4000)), 4100, "another estimate is another formula");
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
        assert!(need(&learned, &model) <= 1007 && !learned.ended(&model, 1000));
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
    fn s03_what_no_server_wrote_is_kept_beside() {
        let folder = tempfile::tempdir().unwrap();
        let (path, kept) = (folder.path().join("learned.json"), folder.path().join("learned.json.kept"));
        fs::write(&path, "[\"mine\"]").unwrap();
        let mut learned = Learned::default();
        learned.took(&loaded(1, 1000), 1500);
        for _ in 0..2 {
            learned.write(&path).unwrap();
            assert_eq!(
                (Learned::read(&path), fs::read_to_string(&kept).unwrap()),
                (learned.clone(), "[\"mine\"]".into())
            );
        }
        fs::write(&path, "[\"mine too\"]").unwrap();
        assert!(learned.write(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\"mine too\"]");
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
