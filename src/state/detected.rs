//! The detector's rules and the incidents: read at the start, written whenever they change. In the middle
//! of an incident a restart lets nobody go.

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tidegate_engine::detect::{Carried, Detector};
use tidegate_engine::request::HashKey;
use tidegate_engine::time::Instant;

use super::kept::{Found, KeptFile};

/// The file, under the state folder.
const FILE: &str = "incidents.json";
const VERSION: u32 = 1;

/// What the identity key makes of this tells whether the hashes in the file are of the same key.
const KEY_CHECK: &[u8] = b"tidegate incidents.json";

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    key: u64,
    carried: Carried,
}

/// The file of the detector's rules and the incidents.
#[derive(Clone, Debug)]
pub struct DetectedFile {
    file: KeptFile,
    key: u64,
}

impl DetectedFile {
    /// Names the file under the state folder, for hashes of this key.
    pub fn new(folder: &Path, key: &HashKey) -> Self {
        Self {
            file: KeptFile::new(folder, FILE, "incidents", VERSION),
            key: key.hash(KEY_CHECK),
        }
    }

    /// Returns the file.
    pub fn file(&self) -> &KeptFile {
        &self.file
    }

    /// Gives the detector what was kept. What cannot be used is set aside, and said.
    pub fn restore(&self, detector: &mut Detector, wall: SystemTime, now: Instant) {
        let Found::Content(content) = self.file.read() else {
            return;
        };
        match serde_json::from_slice::<Content>(&content) {
            Ok(content) if content.key == self.key => {
                let rules =
                    detector.carry_on(content.carried, "the process was restarted", wall, now);
                if rules > 0 {
                    tracing::warn!(
                        rules,
                        "detected rules of before the restart are in force again"
                    );
                }
            }
            Ok(_) => {
                self.file.set_aside("written with another identity key");
            }
            Err(error) => {
                self.file.set_aside(&error.to_string());
            }
        }
    }

    /// Returns what stands in the file.
    pub fn content(&self, carried: Carried) -> Vec<u8> {
        let content = Content {
            key: self.key,
            carried,
        };
        // Numbers and texts: there is nothing that could not be written as JSON.
        serde_json::to_vec(&content).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_engine::attribute::Schema;
    use tidegate_engine::detect::DetectionSpec;

    use super::*;
    use crate::state::tests::folder;

    #[test]
    fn what_is_kept_is_read_again_under_the_same_key_only() {
        let folder = folder("detected");
        let wall = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let now = (wall, Instant::from_secs_f64(1e6));
        let mut detector = Detector::new(Arc::new(Schema::built_in()), DetectionSpec::default(), 1);
        let file = DetectedFile::new(&folder, &HashKey::from_seed(1));
        let carried = detector.carried(now.0, now.1);
        let content = file.content(carried.clone());
        let read: Content = serde_json::from_slice(&content).unwrap();
        assert_eq!(read.carried, carried);
        let write = || {
            let parts = file.file.parts(&content).concat();
            std::fs::write(file.file.path(), parts).unwrap();
        };
        write();
        file.restore(&mut detector, now.0, now.1);
        assert!(file.file.path().exists());
        let other = DetectedFile::new(&folder, &HashKey::from_seed(2));
        other.restore(&mut detector, now.0, now.1);
        assert!(!file.file.path().exists(), "hashes of another key");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
