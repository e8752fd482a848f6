//! Hears from the operating system that something changed in a folder. What it misses (a full queue, a
//! network mount, no inotify at all) is found by looking, which is [`super::files`]' business.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Config, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;

use super::bell::Bell;
use crate::rules_folder::is_yaml;

/// The most folders that are watched; changes in the others are found by looking.
const WATCHED_MAX: usize = 1024;

/// What is watched. Folders, not files: a file that is replaced takes its watch with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// Folders in which something may change.
    pub(super) folders: HashSet<PathBuf>,
    /// Names in them that count, besides those of rule files.
    pub(super) names: HashSet<OsString>,
}

/// The watch over folders.
#[derive(Debug)]
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    /// What is watched, with device and inode: a folder that was replaced is another.
    armed: HashMap<PathBuf, (u64, u64)>,
    names: Arc<Mutex<HashSet<OsString>>>,
    /// Whether it was said that changes are only found by looking.
    is_said: bool,
}

impl Watch {
    /// Begins with nothing; rings the bell when something changes.
    pub(super) fn start(bell: &Arc<Bell>) -> Self {
        let mut watch = Self::none();
        let (bell, names) = (Arc::clone(bell), Arc::clone(&watch.names));
        let hear = move |event: notify::Result<notify::Event>| {
            // An error may hide a change.
            if event.is_ok_and(|event| !counts(&event, &names.lock())) {
                return;
            }
            bell.changed();
        };
        match RecommendedWatcher::new(hear, Config::default()) {
            Ok(watcher) => watch.watcher = Some(watcher),
            Err(error) => watch.complain(&error),
        }
        watch
    }

    /// A watch that hears nothing.
    pub(super) fn none() -> Self {
        Self {
            watcher: None,
            armed: HashMap::new(),
            names: Arc::default(),
            is_said: false,
        }
    }

    /// Watches these places and no others. A folder that was replaced is watched anew.
    pub(super) fn arm(&mut self, places: &Places) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        self.names.lock().clone_from(&places.names);
        let gone = |path: &PathBuf, id: &(u64, u64)| {
            !places.folders.contains(path) || identity(path) != Some(*id)
        };
        self.armed.retain(|path, id| {
            if !gone(path, id) {
                return true;
            }
            // A folder that is gone took its watch with it.
            if let Err(error) = watcher.unwatch(path) {
                tracing::debug!(%error, "a folder was not watched any more");
            }
            false
        });
        let mut failed = None;
        for path in &places.folders {
            if self.armed.contains_key(path) || self.armed.len() >= WATCHED_MAX {
                continue;
            }
            let Some(id) = identity(path) else { continue };
            match watcher.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.armed.insert(path.clone(), id);
                }
                // It went away meanwhile; its parent says when it comes back.
                Err(_gone) if identity(path).is_none() => {}
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            self.complain(&error);
        }
    }

    /// Watches all of it anew: something changed and nothing was heard.
    pub(super) fn arm_anew(&mut self, places: &Places) {
        self.arm(&Places::default());
        self.arm(places);
    }

    fn complain(&mut self, error: &notify::Error) {
        if !self.is_said {
            tracing::warn!(
                %error,
                "the system does not tell when files change; they are looked at every second instead \
                 (if inotify is short, raise fs.inotify.max_user_watches or max_user_instances)"
            );
        }
        self.is_said = true;
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Returns whether an event may be a change of what is read. Other files are written in the same
/// folders, an access log among them, and reading is an event, too.
fn counts(event: &notify::Event, names: &HashSet<OsString>) -> bool {
    let is_folder = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => return false,
        // Of what is moved it is not said whether it is a folder.
        EventKind::Modify(ModifyKind::Name(_)) => true,
        EventKind::Create(kind) => kind == notify::event::CreateKind::Folder,
        EventKind::Remove(kind) => kind == notify::event::RemoveKind::Folder,
        _ => false,
    };
    event.need_rescan()
        || event.paths.iter().any(|path| {
            let name = path.file_name().unwrap_or_default();
            let bytes = name.as_encoded_bytes();
            // Mounted configuration lives in `..data`; what else is hidden is nobody's business.
            if bytes.starts_with(b".") {
                return bytes.starts_with(b"..");
            }
            is_folder || is_yaml(path) || names.contains(name)
        })
}

#[cfg(test)]
mod tests {
    use notify::Event;
    use notify::event::{CreateKind, DataChange, Flag, RenameMode};

    use super::*;

    #[test]
    fn what_others_write_beside_the_rules_does_not_count() {
        let names = HashSet::from([OsString::from("edge.conf")]);
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let read = EventKind::Access(AccessKind::Open(AccessMode::Any));
        let moved = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        for (kind, path, expected) in [
            (written, "/etc/t/a.yaml", true),
            (written, "/etc/t/edge.conf", true),
            (written, "/etc/t/access.log", false),
            (written, "/etc/t/.a.yaml.swp", false),
            (read, "/etc/t/a.yaml", false),
            (moved, "/etc/t/..data", true),
            (moved, "/etc/t/rules", true),
            (EventKind::Create(CreateKind::Folder), "/etc/t/sub", true),
            (EventKind::Create(CreateKind::File), "/etc/t/x.tmp", false),
        ] {
            let event = Event::new(kind).add_path(path.into());
            assert_eq!(counts(&event, &names), expected, "{kind:?} {path}");
        }
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert!(counts(&overflow, &names));
    }
}
