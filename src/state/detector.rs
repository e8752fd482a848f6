//! What the detector has learnt: read at the start, written each minute and at the end. A file that
//! cannot be used is set aside, and the detector learns anew.

use std::io;
use std::path::Path;

use tidegate_engine::detect::{Detector, SNAPSHOT_BYTES_MAX};
use tidegate_engine::request::HashKey;

use super::place::Place;

/// The file, under the state folder. It holds keyed hashes and counts; readable by its owner only.
const FILE: &str = "detector.state";

/// What the identity key makes of this tells whether the hashes in the file are of the same key.
const KEY_CHECK: &[u8] = b"tidegate detector.state";

/// The file of what the detector has learnt.
#[derive(Clone, Debug)]
pub struct DetectorFile {
    place: Place,
    check: [u8; 8],
}

impl DetectorFile {
    /// Names the file under the state folder, for hashes of this key.
    pub fn new(folder: &Path, key: &HashKey) -> Self {
        Self {
            place: Place::new(folder, FILE),
            check: key.hash(KEY_CHECK).to_le_bytes(),
        }
    }

    /// Gives the detector what was kept. What cannot be used is set aside under another name, and said.
    pub fn restore(&self, detector: &mut Detector) {
        let restored = match self.read() {
            Ok(None) => return,
            Ok(Some(snapshot)) => detector
                .restore(&snapshot)
                .map_err(|error| error.to_string()),
            // It is still there, and was said to be.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return,
            Err(error) => Err(error.to_string()),
        };
        match restored {
            Ok(()) => tracing::info!(
                trained_seconds = detector.trained().as_secs(),
                "the detector goes on with what it had learnt"
            ),
            Err(why) => {
                self.place.set_aside(&why);
                tracing::warn!(
                    "what the detector had learnt cannot be used; it learns anew, and blocks nothing \
                     until `detection.warmup` is over"
                );
            }
        }
    }

    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let bytes_max = (SNAPSHOT_BYTES_MAX + self.check.len()) as u64;
        let Some(bytes) = self.place.read(bytes_max)? else {
            return Ok(None);
        };
        match bytes.strip_prefix(&self.check) {
            Some(snapshot) => Ok(Some(snapshot.to_vec())),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "written with another identity key",
            )),
        }
    }

    /// Returns where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Returns what stands in the file for this snapshot, in parts.
    pub fn parts(&self, snapshot: Vec<u8>) -> Vec<Vec<u8>> {
        vec![self.check.to_vec(), snapshot]
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use tidegate_engine::attribute::Schema;
    use tidegate_engine::detect::DetectionSpec;

    use super::*;
    use crate::metrics::Metrics;
    use crate::state::tests::folder;
    use crate::state::{AuditFile, StateWriter};

    fn detector() -> Detector {
        Detector::new(Arc::new(Schema::built_in()), DetectionSpec::default(), 1)
    }

    #[test]
    fn what_was_written_is_restored_and_only_its_owner_may_read_it() {
        let folder = folder("learnt-same");
        let file = DetectorFile::new(&folder, &HashKey::from_seed(1));
        let metrics = Arc::new(Metrics::new());
        let audit = AuditFile::new(&folder);
        let writer = StateWriter::start(file.clone(), audit, &metrics).unwrap();
        let snapshot = detector().snapshot();
        writer.finish(snapshot.clone());
        assert_eq!(file.read().unwrap(), Some(snapshot));
        let mode = fs::metadata(file.place.path())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        file.restore(&mut detector());
        assert!(file.place.path().exists());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_damaged_file_and_one_of_another_key_are_set_aside() {
        let folder = folder("learnt-aside");
        let file = DetectorFile::new(&folder, &HashKey::from_seed(1));
        let mut damaged = detector().snapshot();
        *damaged.last_mut().unwrap() ^= 1;
        let write = |snapshot: &[u8]| file.place.write(&[&file.check, snapshot]).unwrap();
        write(&damaged);
        file.restore(&mut detector());
        assert!(!file.place.path().exists());
        assert!(folder.join("detector.state.unusable").exists());

        write(&detector().snapshot());
        let other = DetectorFile::new(&folder, &HashKey::from_seed(2));
        other.restore(&mut detector());
        assert!(!file.place.path().exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
