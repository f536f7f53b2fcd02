//! Compiled kernels on disk. CubeCL appends them to files of its own; this file says where, checks before they are read that they are
//! what was written, and starts anew otherwise.
//!
//! A kernel is found by the content of its body ([`super::bodies`]) and by the device, so that a changed body is never served. The files of
//! one device lie in one folder, with the versions that wrote them and a seal: the length and the hash of what is known to be sound. What
//! was appended after the seal, by a process that was killed, is read line by line.

use cubecl::config::compilation::CompilationConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{fs, io};
use xxhash_rust::xxh3::xxh3_64;

/// Names the folder of compiled kernels, or is `off`.
pub const VARIABLE: &str = "KILN_KERNEL_CACHE";
/// What wrote a folder. CubeCL's part is its pinned version.
const VERSIONS: &str = concat!("kiln ", env!("CARGO_PKG_VERSION"), ", cubecl 0.10.0");
const VERSION_FILE: &str = "version";
const SEAL_FILE: &str = "seal";

/// The folder of one device.
#[derive(Clone, Debug)]
pub struct KernelCache {
    folder: PathBuf,
    /// What happened to an older content, to be said once.
    pub note: Option<String>,
}

/// The cache of this process: CubeCL reads its place once.
static CACHE: OnceLock<Option<KernelCache>> = OnceLock::new();

/// Points CubeCL to the cache of the device described by `device`; none where it is switched off or the folder cannot be used.
/// All devices of a process share the folder of the first, and are told apart by the keys.
pub fn enable(device: &str) -> Option<&'static KernelCache> {
    let open = || {
        let cache = base().and_then(|base| KernelCache::open(&base, device).ok());
        let place = cache.as_ref().map(|c| CacheConfig::File(c.folder.clone()));
        let compilation = CompilationConfig { cache: place, ..CompilationConfig::default() };
        CubeClRuntimeConfig::set(CubeClRuntimeConfig { compilation, ..CubeClRuntimeConfig::default() });
        cache
    };
    CACHE.get_or_init(open).as_ref()
}

/// Where caches lie, by the environment.
fn base() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    match set(VARIABLE) {
        Some(place) if place == Path::new("off") => None,
        Some(place) => Some(place),
        None => set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache"))).map(|c| c.join("kiln/kernels")),
    }
}

impl KernelCache {
    /// The folder of a device below `base`: emptied if other versions wrote it or it is damaged.
    fn open(base: &Path, device: &str) -> io::Result<KernelCache> {
        let folder = base.join(format!("{:016x}", xxh3_64(device.as_bytes())));
        let mut note = None;
        if folder.exists() {
            let version = fs::read_to_string(folder.join(VERSION_FILE)).unwrap_or_default();
            let why = if version != VERSIONS {
                Some(format!("was written by {}", if version.is_empty() { "something else" } else { &version }))
            } else {
                damage(&folder)
            };
            if let Some(why) = why {
                fs::remove_dir_all(&folder)?;
                note = Some(format!("kernel cache {} {why}; it is built anew", folder.display()));
            }
        }
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(VERSION_FILE), VERSIONS)?;
        let cache = KernelCache { folder, note };
        cache.seal();
        Ok(cache)
    }

    /// Code that was kept under `key`, the hash of everything that it is made from. A file that is not what was written counts as none.
    #[cfg(feature = "cuda")]
    pub(in crate::device) fn read(&self, key: u64) -> Option<Vec<u8>> {
        let bytes = fs::read(self.code_file(key)).ok()?;
        let (hash, code) = bytes.split_first_chunk()?;
        (u64::from_le_bytes(*hash) == xxh3_64(code)).then(|| code.to_vec())
    }

    /// Keeps code under a key. A folder that cannot be written keeps nothing.
    #[cfg(feature = "cuda")]
    pub(in crate::device) fn write(&self, key: u64, code: &[u8]) {
        let write = || -> io::Result<()> {
            let file = tempfile::NamedTempFile::new_in(&self.folder)?;
            fs::write(file.path(), [&xxh3_64(code).to_le_bytes(), code].concat())?;
            file.persist(self.code_file(key)).map_err(|e| e.error)?;
            Ok(())
        };
        // It is compiled again at the next start.
        let _ = write();
    }

    #[cfg(feature = "cuda")]
    fn code_file(&self, key: u64) -> PathBuf {
        self.folder.join(format!("{key:016x}.cubin"))
    }

    /// Notes what the files hold now. A folder that cannot be written loses its seal at worst, and is then read line by line.
    pub fn seal(&self) {
        let mut text = String::new();
        for path in files(&self.folder) {
            let Ok(bytes) = fs::read(&path) else { continue };
            let name = path.strip_prefix(&self.folder).unwrap_or(&path);
            text.push_str(&format!("{:016x} {} {}\n", xxh3_64(&bytes), bytes.len(), name.display()));
        }
        let write = || -> io::Result<()> {
            let file = tempfile::NamedTempFile::new_in(&self.folder)?;
            fs::write(file.path(), &text)?;
            file.persist(self.folder.join(SEAL_FILE)).map_err(|e| e.error)?;
            Ok(())
        };
        // Without it the next start reads everything.
        let _ = write();
    }
}

/// Files of compiled kernels below a folder, in order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => open.push(path),
                false if path.to_string_lossy().ends_with(".json.log") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

/// What is wrong with the files of a folder, if something is.
fn damage(folder: &Path) -> Option<String> {
    let seal = fs::read_to_string(folder.join(SEAL_FILE)).unwrap_or_default();
    let sealed = |name: &str| {
        let line = seal.lines().find(|l| l.splitn(3, ' ').nth(2) == Some(name))?;
        let mut words = line.split(' ');
        let hash = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((hash, words.next()?.parse::<usize>().ok()?))
    };
    for path in files(folder) {
        let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
        let Ok(bytes) = fs::read(&path) else { return Some(format!("cannot be read ({name})")) };
        let (hash, len) = sealed(&name).unwrap_or((xxh3_64(&[]), 0));
        if bytes.len() < len || xxh3_64(&bytes[..len]) != hash {
            return Some(format!("is damaged ({name})"));
        }
        let tail = &bytes[len..];
        let is_whole = |line: &[u8]| serde_json::from_slice::<serde_json::Value>(line).is_ok();
        let lines_are_whole = tail.is_empty() || tail.ends_with(b"\n");
        if !lines_are_whole || !tail.split(|b| *b == b'\n').filter(|l| !l.is_empty()).all(is_whole) {
            return Some(format!("is damaged after byte {len} ({name})"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "{\"key\":1,\"value\":[1,2]}\n{\"key\":2,\"value\":[3]}\n";

    fn written(base: &Path) -> (KernelCache, PathBuf) {
        let cache = KernelCache::open(base, "card").unwrap();
        let file = cache.folder.join("vulkan/spirv.json.log");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, LINES).unwrap();
        (cache, file)
    }

    #[test]
    fn a_sound_cache_is_kept() {
        let base = tempfile::tempdir().unwrap();
        let (cache, file) = written(base.path());
        // Appended, and not yet sealed.
        let again = KernelCache::open(base.path(), "card").unwrap();
        assert!(again.note.is_none() && fs::read_to_string(&file).unwrap() == LINES);
        cache.seal();
        assert!(KernelCache::open(base.path(), "card").unwrap().note.is_none());
        assert_eq!(fs::read_to_string(&file).unwrap(), LINES);
        assert_ne!(KernelCache::open(base.path(), "other").unwrap().folder, cache.folder);
    }

    #[test]
    fn a_damaged_cache_is_built_anew_and_says_so_once() {
        let base = tempfile::tempdir().unwrap();
        for damaged in ["{\"key\":1,\"value\":[9,2]}\n{\"key\":2,\"value\":[3]}\n", &LINES[..30], ""] {
            let (cache, file) = written(base.path());
            cache.seal();
            fs::write(&file, damaged).unwrap();
            let note = KernelCache::open(base.path(), "card").unwrap().note.unwrap();
            assert!(note.contains("is damaged") && !file.exists(), "{note}");
            assert!(KernelCache::open(base.path(), "card").unwrap().note.is_none());
        }
        // A process that was killed while it appended.
        let (cache, file) = written(base.path());
        cache.seal();
        fs::write(&file, format!("{LINES}{{\"key\":3")).unwrap();
        assert!(KernelCache::open(base.path(), "card").unwrap().note.unwrap().contains("damaged after byte"));
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn code_of_cards_is_read_as_it_was_written_or_not_at_all() {
        let base = tempfile::tempdir().unwrap();
        let cache = KernelCache::open(base.path(), "card").unwrap();
        assert_eq!(cache.read(7), None);
        cache.write(7, b"code");
        assert_eq!(cache.read(7).as_deref(), Some(b"code".as_slice()));
        assert_eq!(cache.read(8), None);
        for damaged in [&b"\0\0\0\0\0\0\0\0code"[..], b"short", b""] {
            fs::write(cache.code_file(7), damaged).unwrap();
            assert_eq!(cache.read(7), None);
        }
        cache.write(7, b"again");
        assert_eq!(cache.read(7).as_deref(), Some(b"again".as_slice()));
    }

    #[test]
    fn a_cache_of_another_version_is_built_anew() {
        let base = tempfile::tempdir().unwrap();
        let (cache, file) = written(base.path());
        fs::write(cache.folder.join(VERSION_FILE), "kiln 0.0.9, cubecl 0.9.0").unwrap();
        let note = KernelCache::open(base.path(), "card").unwrap().note.unwrap();
        assert!(note.contains("written by kiln 0.0.9") && !file.exists(), "{note}");
    }
}
