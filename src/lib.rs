//! The proxy of Tidegate: settings, files and sockets around the engine's decisions.

pub mod check;
pub mod rules_folder;
pub mod settings;
