//! `metrics.jsonl`: one JSON object per logged step, whose numbers read back exactly; a resumed run continues it without duplicates.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One logged step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Optimizer steps that are complete.
    pub step: u64,
    /// Mean loss of the step's tokens, in nats.
    #[serde(with = "real")]
    pub train_loss: f64,
    /// Mean loss of the validation tokens, on steps that evaluate.
    #[serde(with = "optional_real", skip_serializing_if = "Option::is_none", default)]
    pub valid_loss: Option<f64>,
    /// Tokens of all ranks per second of the steps since the last record.
    #[serde(with = "real")]
    pub tokens_per_second: f64,
    /// Milliseconds per step since the last record.
    #[serde(with = "real")]
    pub step_ms: f64,
    /// Learning rate.
    #[serde(with = "real")]
    pub lr: f64,
    /// Norm of the gradient before clipping.
    #[serde(with = "real")]
    pub grad_norm: f64,
    /// Loss scale of the step; 1 without f16.
    #[serde(with = "real")]
    pub loss_scale: f64,
    /// Most memory that one rank's plan uses, in bytes.
    pub peak_bytes: u64,
    /// Seconds since the run started, without the time between a stop and its resume.
    #[serde(with = "real")]
    pub elapsed_s: f64,
    /// Device name.
    pub device: String,
    /// Ranks.
    pub world_size: u64,
    /// Bytes that this rank sent in collectives in the step.
    pub collective_bytes: u64,
    /// Bytes copied from host to device in the step.
    pub h2d_bytes: u64,
    /// Bytes copied from device to host in the step.
    pub d2h_bytes: u64,
}

/// A metrics file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The file system refuses.
    #[error("K0824: cannot use metrics file `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// A line before the last is no record.
    #[error("K0825: metrics file `{}` is damaged in line {line}: {detail}; move it away to resume without it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        detail: String,
    },
}

/// Appends records.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
    line: Vec<u8>,
}

impl MetricsWriter {
    /// Starts an empty file.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn create(path: &Path) -> Result<Self, MetricsError> {
        let file = File::create(path).map_err(|source| MetricsError::Io { path: path.to_owned(), source })?;
        Ok(MetricsWriter { path: path.to_owned(), file, line: Vec::new() })
    }

    /// Continues a file after `step`: later records, and a last line that was being written when the run ended, are cut off.
    /// A file that is not there is started.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn resume(path: &Path, step: u64) -> Result<Self, MetricsError> {
        let failed = |source| MetricsError::Io { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let (_, kept_bytes) = read_until(&mut BufReader::new(&file), path, step)?;
        file.set_len(kept_bytes).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(MetricsWriter { path: path.to_owned(), file, line: Vec::new() })
    }

    /// Appends one record; it is in the file when this returns.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        self.line.clear();
        // One write call per line: a reader never sees half a line unless the process dies inside the call.
        let written = serde_json::to_writer(&mut self.line, record).map_err(io::Error::from).and_then(|()| {
            self.line.push(b'\n');
            self.file.write_all(&self.line)
        });
        written.map_err(|source| MetricsError::Io { path: self.path.clone(), source })
    }
}

/// The records of a file; a last line without its end is left out.
///
/// # Errors
/// [`MetricsError`].
pub fn read_metrics(path: &Path) -> Result<Vec<Record>, MetricsError> {
    let file = File::open(path).map_err(|source| MetricsError::Io { path: path.to_owned(), source })?;
    read_until(&mut BufReader::new(file), path, u64::MAX).map(|(records, _)| records)
}

/// Records up to `step`, and the bytes that they take.
fn read_until(file: &mut impl BufRead, path: &Path, step: u64) -> Result<(Vec<Record>, u64), MetricsError> {
    let (mut records, mut bytes, mut line) = (Vec::new(), 0, Vec::new());
    loop {
        line.clear();
        file.read_until(b'\n', &mut line).map_err(|source| MetricsError::Io { path: path.to_owned(), source })?;
        if line.last() != Some(&b'\n') {
            return Ok((records, bytes)); // the end, or a line that was being written
        }
        let record: Record = serde_json::from_slice(&line).map_err(|e| MetricsError::Damaged {
            path: path.to_owned(),
            line: records.len() + 1,
            detail: e.to_string(),
        })?;
        if record.step > step {
            return Ok((records, bytes));
        }
        bytes += line.len() as u64;
        records.push(record);
    }
}

/// JSON has no infinities and no NaN: they are written as the strings `"inf"`, `"-inf"` and `"NaN"`.
mod real {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(f64),
        Text(String),
    }

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        match value.is_finite() {
            true => serializer.serialize_f64(*value),
            false => serializer.serialize_str(&value.to_string()),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(value) => Ok(value),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// The same for a value that may be absent.
mod optional_real {
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::real::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        super::real::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn record(step: u64) -> Record {
        Record {
            step,
            train_loss: f64::from(0.1f32) + step as f64 / 3.0,
            valid_loss: step.is_multiple_of(2).then_some(1.0 / 7.0),
            tokens_per_second: 1234.567,
            step_ms: 5e-324,
            lr: 3e-4,
            grad_norm: f64::INFINITY,
            loss_scale: 65536.0,
            peak_bytes: u64::MAX,
            elapsed_s: 0.1 + 0.2,
            device: "host".into(),
            world_size: 1,
            collective_bytes: 0,
            h2d_bytes: 0,
            d2h_bytes: 0,
        }
    }

    fn written(path: &Path, steps: impl IntoIterator<Item = u64>) {
        let mut writer = MetricsWriter::create(path).unwrap();
        steps.into_iter().for_each(|step| writer.write(&record(step)).unwrap());
    }

    #[test]
    fn numbers_read_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        written(&path, 1..=4);
        assert_eq!(read_metrics(&path).unwrap(), (1..=4).map(record).collect::<Vec<_>>());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"grad_norm\":\"inf\"") && text.contains("\"elapsed_s\":0.30000000000000004"));
        assert_eq!(text.matches("valid_loss").count(), 2);
    }

    #[test]
    fn resume_cuts_later_records_and_a_half_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        written(&path, 1..=6);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        let mut writer = MetricsWriter::resume(&path, 3).unwrap();
        (4..=6).for_each(|step| writer.write(&record(step)).unwrap());
        assert_eq!(fs::read(&path).unwrap(), whole, "as if it had never stopped");
    }

    #[test]
    fn resume_starts_a_file_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        MetricsWriter::resume(&path, 3).unwrap().write(&record(4)).unwrap();
        assert_eq!(read_metrics(&path).unwrap(), [record(4)]);
    }

    #[test]
    fn damage_names_the_line_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        written(&path, 1..=3);
        let text = fs::read_to_string(&path).unwrap().replacen("\"step\":2", "\"step\":x", 1);
        fs::write(&path, &text).unwrap();
        let error = MetricsWriter::resume(&path, 3).unwrap_err().to_string();
        assert!(error.starts_with("K0825") && error.contains("in line 2"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}
