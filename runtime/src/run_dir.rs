//! `runs/<name>/`: where a run keeps its configuration, plan, metrics, state, samples and plot; nothing is ever overwritten by another run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::state::durable;

/// The folder of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

/// A run folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The name is taken.
    #[error("K0821: run `{}` exists: add `--resume` to continue it, or choose another `--name`", path.display())]
    Exists {
        /// Its folder.
        path: PathBuf,
    },
    /// There is no such run.
    #[error("K0822: there is no run to resume in `{}`: start one without `--resume`", path.display())]
    NoRun {
        /// The run's folder, or the folder of runs.
        path: PathBuf,
    },
    /// The run ended before it first saved.
    #[error("K0822: run `{}` has no state yet: it ended before it first saved; start a new run without `--resume`", path.display())]
    NoState {
        /// Its folder.
        path: PathBuf,
    },
    /// The run was started otherwise.
    #[error("K0823: `{key}` is {current} here and {saved} in run `{}`: leave it out to resume with the run's own", path.display())]
    Differs {
        /// Its folder.
        path: PathBuf,
        /// The first value that differs, such as `sizes.D`.
        key: String,
        /// The run's value, `absent` if it has none.
        saved: String,
        /// The value now.
        current: String,
    },
    /// The name is no folder name.
    #[error("K0824: `{name}` cannot name a run: use letters, digits, `-`, `_` and `.`, not starting with a dot")]
    Name {
        /// The name.
        name: String,
    },
    /// Its configuration does not read back.
    #[error("K0824: cannot read `{}`: {detail}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The file system refuses.
    #[error("K0824: cannot use run folder `{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

impl RunDir {
    /// Makes a new folder below `runs`. Without a name it is the date and time in UTC, with a counter if that is taken.
    ///
    /// # Errors
    /// [`RunError::Exists`], [`RunError::Name`], [`RunError::Io`].
    pub fn create(runs: &Path, name: Option<&str>) -> Result<RunDir, RunError> {
        fs::create_dir_all(runs).map_err(|source| RunError::Io { path: runs.to_owned(), source })?;
        match name {
            Some(name) => RunDir::create_named(runs, name),
            None => {
                let now = date_time(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
                let names = std::iter::once(now.clone()).chain((2u32..).map(|i| format!("{now}-{i}")));
                for name in names {
                    match RunDir::create_named(runs, &name) {
                        Err(RunError::Exists { .. }) => {}
                        made => return made,
                    }
                }
                unreachable!("the counter runs for four billion names")
            }
        }
    }

    fn create_named(runs: &Path, name: &str) -> Result<RunDir, RunError> {
        check_name(name)?;
        let path = runs.join(name);
        // `create_dir` is one atomic question and answer: two runs that start together get two folders.
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(RunError::Exists { path }),
            Err(source) => return Err(RunError::Io { path, source }),
        }
        let run = RunDir { path };
        fs::create_dir(run.samples()).map_err(|source| RunError::Io { path: run.samples(), source })?;
        Ok(run)
    }

    /// Finds the run of this name, or else the one whose state was saved last.
    ///
    /// # Errors
    /// [`RunError::NoRun`], [`RunError::NoState`], [`RunError::Name`], [`RunError::Io`].
    pub fn resume(runs: &Path, name: Option<&str>) -> Result<RunDir, RunError> {
        if let Some(name) = name {
            check_name(name)?;
            return RunDir::with_state(runs.join(name));
        }
        let entries = match fs::read_dir(runs) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RunError::NoRun { path: runs.to_owned() });
            }
            Err(source) => return Err(RunError::Io { path: runs.to_owned(), source }),
        };
        let candidates = entries.flatten().filter_map(|entry| {
            let run = RunDir { path: entry.path() };
            let saved = fs::metadata(run.state()).and_then(|m| m.modified()).ok()?;
            Some((saved, run.path))
        });
        match candidates.max() {
            Some((_, path)) => Ok(RunDir { path }),
            None => Err(RunError::NoRun { path: runs.to_owned() }),
        }
    }

    fn with_state(path: PathBuf) -> Result<RunDir, RunError> {
        let run = RunDir { path };
        match (run.path.is_dir(), run.state().is_file()) {
            (false, _) => Err(RunError::NoRun { path: run.path }),
            (true, false) => Err(RunError::NoState { path: run.path }),
            (true, true) => Ok(run),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The plan as text.
    pub fn plan(&self) -> PathBuf {
        self.path.join("plan.txt")
    }

    /// One line per logged step.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Weights, moments, counters.
    pub fn state(&self) -> PathBuf {
        self.path.join("state.safetensors")
    }

    /// The folder of generated texts.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// The loss curves.
    pub fn plot(&self) -> PathBuf {
        self.path.join("loss.svg")
    }

    /// The trace of a profile.
    pub fn profile(&self) -> PathBuf {
        self.path.join("profile.json")
    }

    /// Writes one of the run's files durably.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn write(&self, path: &Path, content: &str) -> Result<(), RunError> {
        durable::replace_with(path, content.as_bytes()).map_err(|source| RunError::Io { path: path.to_owned(), source })
    }

    /// Writes the resolved configuration.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn write_config(&self, config: &Value) -> Result<(), RunError> {
        self.write(&self.config(), &format!("{config:#}\n"))
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`RunError::Io`], [`RunError::Config`].
    pub fn read_config(&self) -> Result<Value, RunError> {
        let path = self.config();
        let text = fs::read_to_string(&path).map_err(|source| RunError::Io { path: path.clone(), source })?;
        serde_json::from_str(&text).map_err(|e| RunError::Config { path, detail: e.to_string() })
    }

    /// Compares the run's configuration with the one asked for now; `free` are the keys that may change between the two.
    ///
    /// # Errors
    /// [`RunError::Differs`] names the first key, in sorted order.
    pub fn check_same_config(&self, saved: &Value, current: &Value, free: &[&str]) -> Result<(), RunError> {
        match first_difference("", saved, current, free) {
            None => Ok(()),
            Some((key, saved, current)) => Err(RunError::Differs { path: self.path.clone(), key, saved, current }),
        }
    }
}

fn check_name(name: &str) -> Result<(), RunError> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !name.is_empty() && !name.starts_with('.') && name.len() <= 128 && name.chars().all(plain) {
        true => Ok(()),
        false => Err(RunError::Name { name: name.to_owned() }),
    }
}

/// (key, saved, current) of the first value that differs; objects are compared key by key, in sorted order.
fn first_difference(key: &str, saved: &Value, current: &Value, free: &[&str]) -> Option<(String, String, String)> {
    if saved == current || free.contains(&key) {
        return None;
    }
    let (Value::Object(a), Value::Object(b)) = (saved, current) else {
        return Some((key.to_owned(), saved.to_string(), current.to_string()));
    };
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find_map(|name| {
        let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        match (a.get(name), b.get(name)) {
            (Some(x), Some(y)) => first_difference(&key, x, y, free),
            _ if free.contains(&key.as_str()) => None,
            (x, y) => {
                let text = |v: Option<&Value>| v.map_or("absent".to_owned(), Value::to_string);
                Some((key, text(x), text(y)))
            }
        }
    })
}

/// `20251124-013059` for seconds since 1970, in UTC; days to a date after Hinnant, "chrono-compatible low-level date algorithms".
pub fn date_time(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date_time(0), "19700101-000000");
        assert_eq!(date_time(951_782_399), "20000228-235959");
        assert_eq!(date_time(951_782_400), "20000229-000000");
        assert_eq!(date_time(1_732_408_259), "20241124-003059");
    }

    #[test]
    fn default_names_are_always_new() {
        let runs = tempfile::tempdir().unwrap();
        let made: std::collections::BTreeSet<PathBuf> =
            (0..5).map(|_| RunDir::create(runs.path(), None).unwrap().path).collect();
        assert_eq!(made.len(), 5);
        assert!(made.iter().all(|run| run.join("samples").is_dir()));
    }

    #[test]
    fn an_existing_name_is_refused_and_unchanged() {
        let runs = tempfile::tempdir().unwrap();
        let run = RunDir::create(runs.path(), Some("a")).unwrap();
        run.write_config(&json!({"x": 1})).unwrap();
        let error = RunDir::create(runs.path(), Some("a")).unwrap_err();
        assert!(error.to_string().contains("add `--resume`"));
        assert_eq!(run.read_config().unwrap(), json!({"x": 1}));
        for name in ["", "..", "a/b", ".hidden", "a b", &"x".repeat(200)] {
            assert!(matches!(RunDir::create(runs.path(), Some(name)), Err(RunError::Name { .. })), "{name}");
        }
    }

    #[test]
    fn resume_finds_the_run_that_saved_last() {
        let runs = tempfile::tempdir().unwrap();
        assert!(matches!(RunDir::resume(&runs.path().join("none"), None), Err(RunError::NoRun { .. })));
        assert!(matches!(RunDir::resume(runs.path(), None), Err(RunError::NoRun { .. })));
        let (a, b) = (RunDir::create(runs.path(), Some("a")).unwrap(), RunDir::create(runs.path(), Some("b")).unwrap());
        assert!(matches!(RunDir::resume(runs.path(), Some("a")), Err(RunError::NoState { .. })));
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        for (run, saved) in [(&b, SystemTime::now()), (&a, later)] {
            fs::write(run.state(), "").unwrap();
            fs::File::options().write(true).open(run.state()).unwrap().set_modified(saved).unwrap();
        }
        assert_eq!(RunDir::resume(runs.path(), None).unwrap(), a);
        assert_eq!(RunDir::resume(runs.path(), Some("b")).unwrap(), b);
        assert!(matches!(RunDir::resume(runs.path(), Some("c")), Err(RunError::NoRun { .. })));
    }

    #[test]
    fn first_difference_of_configurations_is_named() {
        let runs = tempfile::tempdir().unwrap();
        let run = RunDir::create(runs.path(), Some("a")).unwrap();
        let saved = json!({"sizes": {"B": 8, "D": 128}, "seed": 1, "threads": 2});
        let check = |current: Value| run.check_same_config(&saved, &current, &["threads"]).map_err(|e| e.to_string());
        assert_eq!(check(json!({"sizes": {"B": 8, "D": 128}, "seed": 1, "threads": 4})), Ok(()));
        assert_eq!(check(json!({"sizes": {"B": 8, "D": 128}, "seed": 1})), Ok(()));
        let error = check(json!({"sizes": {"B": 8, "D": 256}, "seed": 1, "threads": 2})).unwrap_err();
        assert!(error.starts_with("K0823: `sizes.D` is 256 here and 128 in run"), "{error}");
        let error = check(json!({"sizes": {"B": 8}, "seed": 1, "threads": 2})).unwrap_err();
        assert!(error.contains("`sizes.D` is absent here"), "{error}");
    }
}
