//! As whom the command runs.

use std::{io, path::PathBuf};

use nix::{
    errno::Errno,
    unistd::{Gid, Uid, getgroups, setegid, seteuid, setgroups},
};
use thiserror::Error;

use super::accounts::Accounts;

/// Why there is no user to run the command as.
#[derive(Debug, Error)]
pub enum UserError {
    /// There is no such user.
    #[error("there is no user {0}: give a name of /etc/passwd, or a number")]
    NoUser(String),
    /// There is no such group.
    #[error("there is no group {0}: give a name of /etc/group, or a number")]
    NoGroup(String),
    /// Only root may become somebody else.
    #[error("only root can run a command as another user; run it with sudo, or leave --user out")]
    NotRoot,
    /// The kernel refuses.
    #[error("cannot open files as user {0}")]
    Become(u32, #[source] Errno),
    /// The system's list of users cannot be read.
    #[error("cannot look up user {0}")]
    Lookup(String, #[source] io::Error),
}

/// A user with the groups that a command gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// The user.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
    /// The supplementary groups.
    pub groups: Vec<Gid>,
    /// The user's name, where there is one.
    pub name: Option<String>,
    /// True if this is another user than the one who runs `exec`.
    pub is_other: bool,
    home: Option<PathBuf>,
    shell: Option<PathBuf>,
}

impl RunAs {
    /// The user that is given (`NAME` or `UID`, perhaps with `:GROUP`), else the caller of sudo, else the own one.
    ///
    /// # Errors
    ///
    /// There is no such user, or this process may not become that user.
    pub fn choose(
        given: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, UserError> {
        let own = Uid::effective();
        let (user, group) = match given {
            Some(given) => match given.split_once(':') {
                Some((user, group)) => (user.to_owned(), Some(group.to_owned())),
                None => (given.to_owned(), None),
            },
            None => match variable("SUDO_UID").filter(|_| own.is_root()) {
                Some(uid) => (uid, variable("SUDO_GID")),
                None => return Self::own(),
            },
        };
        let accounts = Accounts::read().map_err(|error| UserError::Lookup(user.clone(), error))?;
        let (uid, entry) = match user.parse::<u32>() {
            Ok(number) => {
                let uid = Uid::from_raw(number);
                (uid, accounts.user_of(uid))
            }
            Err(_) => {
                let entry = accounts.user(&user);
                let entry = entry.ok_or_else(|| UserError::NoUser(user.clone()))?;
                (entry.uid, Some(entry))
            }
        };
        let gid = match group {
            Some(group) => group_of(&accounts, &group)?,
            // A number without an entry has a group of its own number, as containers have it.
            None => entry.map_or_else(|| Gid::from_raw(uid.as_raw()), |entry| entry.gid),
        };
        let groups = entry.map_or_else(|| vec![gid], |entry| accounts.groups_of(&entry.name, gid));
        let is_other = uid != own || gid != Gid::effective();
        if is_other && !own.is_root() {
            return Err(UserError::NotRoot);
        }
        Ok(Self {
            uid,
            gid,
            groups,
            name: entry.map(|entry| entry.name.clone()),
            is_other,
            home: entry.map(|entry| entry.home.clone()),
            shell: entry.map(|entry| entry.shell.clone()),
        })
    }

    fn own() -> Result<Self, UserError> {
        let uid = Uid::effective();
        let failed = |error| UserError::Lookup(uid.as_raw().to_string(), error);
        let accounts = Accounts::read().map_err(failed)?;
        let name = accounts.user_of(uid).map(|entry| entry.name.clone());
        let groups = getgroups().map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            uid,
            gid: Gid::effective(),
            groups,
            name,
            is_other: false,
            home: None,
            shell: None,
        })
    }

    /// Variables that replace those of the user who runs `exec`.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        if !self.is_other {
            return Vec::new();
        }
        let path = |path: &PathBuf| path.display().to_string();
        let name = self.name.clone();
        [
            ("HOME", self.home.as_ref().map(path)),
            ("SHELL", self.shell.as_ref().map(path)),
            ("USER", name.clone()),
            ("LOGNAME", name),
        ]
        .into_iter()
        .filter_map(|(variable, value)| Some((variable, value?)))
        .collect()
    }

    /// Does something with this user's permissions. Only while this process has one thread.
    ///
    /// # Errors
    ///
    /// The kernel refuses to become this user, or to become who it was again.
    pub fn while_being<T>(&self, work: impl FnOnce() -> T) -> Result<T, UserError> {
        if !self.is_other {
            return Ok(work());
        }
        let failed = |errno| UserError::Become(self.uid.as_raw(), errno);
        let (groups, gid, uid) = (
            getgroups().map_err(failed)?,
            Gid::effective(),
            Uid::effective(),
        );
        setgroups(&self.groups).map_err(failed)?;
        setegid(self.gid).map_err(failed)?;
        seteuid(self.uid).map_err(failed)?;
        let result = work();
        seteuid(uid).map_err(failed)?;
        setegid(gid).map_err(failed)?;
        setgroups(&groups).map_err(failed)?;
        Ok(result)
    }

    /// True if this user may write a file with this owner and mode.
    #[must_use]
    pub fn may_write(&self, owner: u32, group: u32, mode: u32) -> bool {
        if self.uid.is_root() {
            return true;
        }
        let is_group = |gid: &Gid| gid.as_raw() == group;
        if self.uid.as_raw() == owner {
            mode & 0o200 != 0
        } else if is_group(&self.gid) || self.groups.iter().any(is_group) {
            mode & 0o020 != 0
        } else {
            mode & 0o002 != 0
        }
    }
}

fn group_of(accounts: &Accounts, text: &str) -> Result<Gid, UserError> {
    if let Ok(number) = text.parse::<u32>() {
        return Ok(Gid::from_raw(number));
    }
    let group = accounts.group(text);
    group
        .map(|group| group.gid)
        .ok_or_else(|| UserError::NoGroup(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody(groups: &[u32]) -> RunAs {
        RunAs {
            uid: Uid::from_raw(1000),
            gid: Gid::from_raw(1000),
            groups: groups.iter().copied().map(Gid::from_raw).collect(),
            name: None,
            is_other: true,
            home: None,
            shell: None,
        }
    }

    #[test]
    fn who_may_write_is_decided_as_the_kernel_does() {
        let user = nobody(&[27]);
        assert!(user.may_write(1000, 0, 0o644));
        // The owner's bits alone count for the owner.
        assert!(!user.may_write(1000, 1000, 0o066));
        assert!(user.may_write(0, 27, 0o664));
        assert!(!user.may_write(0, 28, 0o664));
        assert!(user.may_write(0, 28, 0o666));
        assert!(!user.may_write(0, 0, 0o644));
    }

    #[test]
    fn a_user_that_is_not_there_is_named() {
        let error = RunAs::choose(Some("nobody-of-this-name"), |_| None).expect_err("no such user");
        assert!(error.to_string().contains("nobody-of-this-name"), "{error}");
    }
}
