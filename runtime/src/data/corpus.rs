//! Files and folders become one training and one validation text, the same ones for the same files.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::DataError;

/// What is taken from a folder and how it is split.
#[derive(Clone, Debug, PartialEq)]
pub struct CorpusOptions {
    /// Only files with one of these extensions; none given: every file that is UTF-8.
    pub extensions: Vec<String>,
    /// Files of a folder beyond this size are left out: they are mostly generated tables.
    pub max_file_bytes: u64,
    /// The text ends here: files are taken in an order given by hashes of their paths until it is full.
    pub max_bytes: u64,
    /// Part of the bytes that becomes validation text.
    pub valid_fraction: f64,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        CorpusOptions { extensions: Vec::new(), max_file_bytes: 1 << 20, max_bytes: 32 << 20, valid_fraction: 0.1 }
    }
}

/// Training and validation text; files are joined by a zero byte.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Where it came from.
    pub path: PathBuf,
    /// Training text.
    pub train: Arc<[u8]>,
    /// Validation text.
    pub valid: Arc<[u8]>,
    /// Files in the training text and in the validation text.
    pub files: (usize, usize),
    /// Files left out because their content was there already.
    pub duplicates: usize,
    /// How the two were separated.
    pub split: Split,
}

/// How training and validation text are separated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// By whole files.
    Files,
    /// By position, because no set of whole files has about the wanted size: validation is the end of the text.
    Tail,
    /// The user gave both.
    Given,
}

/// Between two files: no text holds it, so a model learns where files end.
const SEPARATOR: u8 = 0;

impl Corpus {
    /// Reads a file (any bytes) or a folder (recursively, UTF-8 files) and splits it.
    ///
    /// Contents that occur twice are taken once. Validation gets whole files, in the order of their content's hash, up to
    /// `valid_fraction` of the bytes.
    ///
    /// # Errors
    /// [`DataError::Unreadable`] and [`DataError::Empty`].
    pub fn read(path: &Path, options: &CorpusOptions) -> Result<Corpus, DataError> {
        let mut seen = HashSet::new();
        let (files, duplicates) = read_text(path, options, &mut seen)?;
        let total: usize = files.iter().map(Vec::len).sum();
        let wanted = (total as f64 * options.valid_fraction) as usize;
        let chosen = validation_files(&files, wanted);
        let bytes: usize = chosen.iter().map(|&i| files[i].len()).sum();
        if bytes < wanted / 2 {
            let text = joined(files.iter());
            let (train, valid) = text.split_at(text.len() - wanted.min(text.len()));
            let (n, split) = (files.len(), Split::Tail);
            let (train, valid) = (train.into(), valid.into());
            return Ok(Corpus { path: path.to_owned(), train, valid, files: (n, 1), duplicates, split });
        }
        let part = |validation: bool| {
            joined(files.iter().enumerate().filter(|(i, _)| chosen.contains(i) == validation).map(|(_, f)| f)).into()
        };
        Ok(Corpus {
            path: path.to_owned(),
            train: part(false),
            valid: part(true),
            files: (files.len() - chosen.len(), chosen.len()),
            duplicates,
            split: Split::Files,
        })
    }

    /// Reads training and validation text from two places; what is in both is only in validation.
    ///
    /// # Errors
    /// Those of [`Corpus::read`].
    pub fn read_pair(train: &Path, valid: &Path, options: &CorpusOptions) -> Result<Corpus, DataError> {
        let mut seen = HashSet::new();
        let (valid_files, _) = read_text(valid, options, &mut seen)?;
        let (train_files, duplicates) = read_text(train, options, &mut seen)?;
        Ok(Corpus {
            path: train.to_owned(),
            train: joined(train_files.iter()).into(),
            valid: joined(valid_files.iter()).into(),
            files: (train_files.len(), valid_files.len()),
            duplicates,
            split: Split::Given,
        })
    }

    /// Refuses a corpus that has less than a few sequences of `seq` in each part.
    ///
    /// # Errors
    /// [`DataError::Tiny`].
    pub fn check_length(&self, seq: usize) -> Result<(), DataError> {
        /// Fewer sequences than this are memorised or measure nothing.
        const MIN_SEQUENCES: usize = 4;
        let wanted = MIN_SEQUENCES * (seq + 1);
        for (part, text) in [("training", &self.train), ("validation", &self.valid)] {
            if text.len() < wanted {
                return Err(DataError::Tiny { path: self.path.clone(), part, found: text.len(), wanted, seq });
            }
        }
        Ok(())
    }

    /// A hash of both texts: a resumed run compares it, since other text would continue another training.
    pub fn fingerprint(&self) -> String {
        format!("{:016x}{:016x}", xxh3_64(&self.train), xxh3_64(&self.valid))
    }

    /// One line for people: sizes, files and how they were split.
    pub fn summary(&self) -> String {
        let how = match self.split {
            Split::Files => "split by whole files",
            Split::Tail => "validation is the end of the text",
            Split::Given => "validation as given",
        };
        format!(
            "{}: {} bytes of training text in {} files, {} bytes of validation text in {} ({how}; {} duplicates left out)",
            self.path.display(),
            self.train.len(),
            self.files.0,
            self.valid.len(),
            self.files.1,
            self.duplicates
        )
    }
}

/// The folder of sources that cargo has downloaded: `registry/src` in `$CARGO_HOME`, or in `.cargo` of the home folder.
///
/// # Errors
/// [`DataError::NoCargoSources`] if there is no such folder.
pub fn cargo_sources() -> Result<PathBuf, DataError> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || set("HOME").or_else(|| set("USERPROFILE")).unwrap_or_default().join(".cargo");
    let path = set("CARGO_HOME").unwrap_or_else(home).join("registry").join("src");
    if path.is_dir() { Ok(path) } else { Err(DataError::NoCargoSources { path }) }
}

/// Every regular file below a folder, sorted by path; links are not followed.
///
/// # Errors
/// [`DataError::Unreadable`] names the folder that cannot be listed.
pub fn files_below(root: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |source| DataError::Unreadable { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The contents, and how many were left out as already `seen`.
fn read_text(
    path: &Path,
    options: &CorpusOptions,
    seen: &mut HashSet<u128>,
) -> Result<(Vec<Vec<u8>>, usize), DataError> {
    let failed = |source| DataError::Unreadable { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.is_dir() {
        return read_folder(path, options, seen);
    }
    let mut content = fs::read(path).map_err(failed)?;
    content.truncate(usize::try_from(options.max_bytes).unwrap_or(usize::MAX));
    if content.is_empty() {
        return Err(DataError::Empty { path: path.to_owned(), seen: 1 });
    }
    seen.insert(xxh3_128(&content));
    Ok((vec![content], 0))
}

fn read_folder(
    root: &Path,
    options: &CorpusOptions,
    seen: &mut HashSet<u128>,
) -> Result<(Vec<Vec<u8>>, usize), DataError> {
    let wanted = |path: &PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str());
        options.extensions.is_empty() || options.extensions.iter().any(|e| Some(e.as_str()) == extension)
    };
    let paths = files_below(root)?;
    let n_paths = paths.len();
    let mut paths: Vec<PathBuf> = paths.into_iter().filter(wanted).collect();
    // A hash of the path below the root: a capped corpus is a fair sample, and the same one in another place.
    paths.sort_by_cached_key(|path| {
        let below = path.strip_prefix(root).unwrap_or(path);
        xxh3_64(below.to_string_lossy().replace('\\', "/").as_bytes())
    });

    let (mut files, mut duplicates, mut room) = (Vec::new(), 0, options.max_bytes);
    for path in paths {
        let failed = |source| DataError::Unreadable { path: path.clone(), source };
        if fs::metadata(&path).map_err(failed)?.len() > options.max_file_bytes.min(room) {
            continue;
        }
        let content = fs::read(&path).map_err(failed)?;
        if content.is_empty() || std::str::from_utf8(&content).is_err() {
            continue;
        }
        if !seen.insert(xxh3_128(&content)) {
            duplicates += 1;
            continue;
        }
        room = room.saturating_sub(content.len() as u64);
        files.push(content);
        if room < options.max_bytes / 1000 {
            break; // full to a thousandth: do not look through the rest for small files
        }
    }
    match files.is_empty() {
        true => Err(DataError::Empty { path: root.to_owned(), seen: n_paths }),
        false => Ok((files, duplicates)),
    }
}

/// Indices of files for validation: in the order of their content's hash, each that still fits into `wanted` bytes.
fn validation_files(files: &[Vec<u8>], wanted: usize) -> HashSet<usize> {
    let mut order: Vec<usize> = (0..files.len()).collect();
    order.sort_by_cached_key(|&i| xxh3_64(&files[i]));
    let mut room = wanted;
    order
        .into_iter()
        .filter(|&i| {
            let fits = files[i].len() <= room;
            if fits {
                room -= files[i].len();
            }
            fits
        })
        .collect()
}

fn joined<'a>(files: impl Iterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    let mut text = Vec::new();
    for file in files {
        if !text.is_empty() {
            text.push(SEPARATOR);
        }
        text.extend_from_slice(file);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn many() -> Vec<(String, Vec<u8>)> {
        (0..50).map(|i| (format!("a/{i}.txt"), format!("text number {i} ").repeat(20).into_bytes())).collect()
    }

    fn folder() -> tempfile::TempDir {
        let files = many();
        folder_of(&files.iter().map(|(n, c)| (n.as_str(), c.clone())).collect::<Vec<_>>())
    }

    #[test]
    fn whole_files_are_split_without_overlap() {
        let folder = folder();
        let corpus = Corpus::read(folder.path(), &CorpusOptions::default()).unwrap();
        assert_eq!(corpus.split, Split::Files);
        assert_eq!(corpus.files.0 + corpus.files.1, 50);
        let share = corpus.valid.len() as f64 / (corpus.valid.len() + corpus.train.len()) as f64;
        assert!((0.05..=0.1).contains(&share), "{share}");
        let pieces = |text: &[u8]| text.split(|&b| b == SEPARATOR).map(<[u8]>::to_vec).collect::<HashSet<_>>();
        let (train, valid) = (pieces(&corpus.train), pieces(&corpus.valid));
        assert!(train.is_disjoint(&valid));
        let all: HashSet<Vec<u8>> = many().into_iter().map(|(_, c)| c).collect();
        assert_eq!(train.union(&valid).cloned().collect::<HashSet<_>>(), all, "every file is in exactly one part");
    }

    #[test]
    fn same_files_elsewhere_give_the_same_text() {
        let (a, b) = (folder(), folder());
        let options = CorpusOptions { max_bytes: 5000, ..CorpusOptions::default() };
        let (a, b) = (Corpus::read(a.path(), &options).unwrap(), Corpus::read(b.path(), &options).unwrap());
        assert_eq!((&a.train, &a.valid), (&b.train, &b.valid));
        assert!(a.train.len() + a.valid.len() <= 5000 + 50);
        assert!(a.train.len() + a.valid.len() > 4000, "the cap is filled");
    }

    #[test]
    fn duplicates_binaries_and_other_extensions_are_left_out() {
        let folder = folder_of(&[
            ("a.txt", vec![b'a'; 1000]),
            ("b/a_again.txt", vec![b'a'; 1000]),
            ("b/binary.txt", vec![0xFF; 1000]),
            ("c.md", vec![b'c'; 1000]),
        ]);
        let options = CorpusOptions { extensions: vec!["txt".into()], ..CorpusOptions::default() };
        let corpus = Corpus::read(folder.path(), &options).unwrap();
        assert_eq!((corpus.duplicates, corpus.split), (1, Split::Tail));
        assert_eq!((corpus.train.len(), corpus.valid.len()), (900, 100));
    }

    #[test]
    fn a_single_file_of_any_bytes_is_split_at_its_end() {
        let folder = folder_of(&[("noise", (0..=255).collect())]);
        let corpus = Corpus::read(&folder.path().join("noise"), &CorpusOptions::default()).unwrap();
        assert_eq!(corpus.train.len(), 231);
        assert_eq!(corpus.valid[..], (231..=255).collect::<Vec<u8>>()[..]);
    }

    #[test]
    fn text_given_for_validation_is_not_trained_on() {
        let folder = folder_of(&[("t/a", vec![b'a'; 50]), ("t/b", vec![b'b'; 50]), ("v/b", vec![b'b'; 50])]);
        let options = CorpusOptions::default();
        let corpus = Corpus::read_pair(&folder.path().join("t"), &folder.path().join("v"), &options).unwrap();
        assert_eq!((&corpus.train[..], &corpus.valid[..]), (&[b'a'; 50][..], &[b'b'; 50][..]));
    }

    #[test]
    fn unusable_text_is_named() {
        let folder = folder_of(&[("empty.txt", vec![]), ("little.txt", b"abc".to_vec())]);
        let options = CorpusOptions::default();
        let error = |name: &str| match Corpus::read(&folder.path().join(name), &options) {
            Ok(corpus) => corpus.check_length(8).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error("none").starts_with("K0811") && error("none").contains("none`"));
        assert!(error("empty.txt").starts_with("K0812"));
        assert!(error("little.txt").contains("has 3 bytes, at least 36 are needed for sequences of 8"));
        let none = tempfile::tempdir().unwrap();
        assert!(Corpus::read(none.path(), &options).unwrap_err().to_string().contains("0 files"));
    }
}
