//! The user's files.

use std::fs;
use std::path::PathBuf;

use super::{Resolved, Result, parse};

/// A directory of its own, that takes the place of the home directory and is removed in the end.
pub(super) struct Home(PathBuf);

impl Home {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pglock-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        self.permit(name, 0o600);
        path
    }

    pub(super) fn permit(&self, name: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(super) fn var(&self, name: &str) -> Option<String> {
        match name {
            "HOME" | "PGSYSCONFDIR" => Some(self.0.to_str().unwrap().to_owned()),
            "USER" => Some(String::from("os-user")),
            _ => None,
        }
    }

    pub(super) fn resolve(&self, text: &str) -> Result<Resolved> {
        parse(text).resolve_with(&|name| self.var(name))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
