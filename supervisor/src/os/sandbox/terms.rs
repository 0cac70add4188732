//! What is agreed on between the server, which starts workers, and the launcher, which becomes them.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// What is asked of the walls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// As many as the system has.
    Auto,
    /// All of them, or nothing is started.
    Require,
    /// None.
    #[default]
    Off,
}

impl Policy {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Require => "require",
            Self::Off => "off",
        }
    }

    /// Of the word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Auto, Self::Require, Self::Off].into_iter().find(|policy| policy.as_str() == text)
    }
}

/// Which walls stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walls {
    /// Those that do, in words.
    pub stand: Vec<String>,
    /// What the system lacks, in words.
    pub missing: Vec<String>,
}

/// What the launcher is told. It goes through its arguments, which hold no secret; those are in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What is asked of the walls.
    pub policy: Policy,
    /// Of Landlock no more is used than was there in this version.
    pub landlock_abi_max: Option<i32>,
    /// Dialled, it becomes the program's standard input.
    pub socket: Option<PathBuf>,
    /// Files and folders that may be read.
    pub read: Vec<PathBuf>,
    /// The dynamic linker, where there is one.
    pub loader: Option<PathBuf>,
    /// Memory that the program may have.
    pub data_bytes_max: Option<u64>,
    /// What to become.
    pub program: PathBuf,
    /// With these arguments.
    pub arguments: Vec<OsString>,
}

impl Launch {
    /// As the command line that says the same.
    #[must_use]
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut words = vec![OsString::from("launch"), format!("--policy={}", self.policy.as_str()).into()];
        let mut option = |name: &str, value: &OsStr| {
            let mut word = OsString::from(format!("--{name}="));
            word.push(value);
            words.push(word);
        };
        if let Some(version) = self.landlock_abi_max {
            option("landlock-abi-max", version.to_string().as_ref());
        }
        if let Some(bytes) = self.data_bytes_max {
            option("data-bytes-max", bytes.to_string().as_ref());
        }
        let paths = self.socket.iter().map(|path| ("socket", path));
        let paths = paths.chain(self.loader.iter().map(|path| ("loader", path)));
        for (name, path) in paths.chain(self.read.iter().map(|path| ("read", path))) {
            option(name, path.as_os_str());
        }
        words.extend([OsString::from("--"), self.program.clone().into_os_string()]);
        words.extend(self.arguments.iter().cloned());
        words
    }
}
