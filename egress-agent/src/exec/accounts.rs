//! The system's users and groups, as `/etc/passwd` and `/etc/group` list them (passwd(5), group(5)).
//!
//! The C library's own functions load the name services of the system, which a static program cannot do: it crashes.

use std::{fs, io, path::PathBuf};

use nix::unistd::{Gid, Uid};

/// A user of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: Uid,
    /// The group of the login.
    pub(super) gid: Gid,
    pub(super) home: PathBuf,
    pub(super) shell: PathBuf,
}

/// A group of `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) gid: Gid,
    members: Vec<String>,
}

/// Accounts of both files.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    users: Vec<Account>,
    groups: Vec<Group>,
}

impl Accounts {
    /// Reads both files. One that is not there lists nobody, as in a container without users.
    ///
    /// # Errors
    ///
    /// A file cannot be read.
    pub(super) fn read() -> io::Result<Self> {
        let text = |path| match fs::read(path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error),
        };
        Ok(Self::parse(&text("/etc/passwd")?, &text("/etc/group")?))
    }

    /// Reads the texts of both files; it passes over lines of another form, as the C library does.
    fn parse(passwd: &str, group: &str) -> Self {
        Self {
            users: passwd.lines().filter_map(account).collect(),
            groups: group.lines().filter_map(group_line).collect(),
        }
    }

    pub(super) fn user_of(&self, uid: Uid) -> Option<&Account> {
        self.users.iter().find(|account| account.uid == uid)
    }

    pub(super) fn user(&self, name: &str) -> Option<&Account> {
        self.users.iter().find(|account| account.name == name)
    }

    pub(super) fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// The groups of a user, with the given one first.
    pub(super) fn groups_of(&self, name: &str, gid: Gid) -> Vec<Gid> {
        let mut groups = vec![gid];
        for group in &self.groups {
            if group.members.iter().any(|member| member == name) && !groups.contains(&group.gid) {
                groups.push(group.gid);
            }
        }
        groups
    }
}

fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let mut next = || fields.next();
    let (name, _password, uid, gid) = (next()?, next()?, next()?, next()?);
    let (_full_name, home, shell) = (next()?, next()?, next()?);
    Some(Account {
        name: name.to_owned(),
        uid: Uid::from_raw(uid.parse().ok()?),
        gid: Gid::from_raw(gid.parse().ok()?),
        home: home.into(),
        shell: shell.into(),
    })
}

fn group_line(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let mut next = || fields.next();
    let (name, _password, gid, members) = (next()?, next()?, next()?, next()?);
    let members = members.split(',').filter(|member| !member.is_empty());
    Some(Group {
        name: name.to_owned(),
        gid: Gid::from_raw(gid.parse().ok()?),
        members: members.map(str::to_owned).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_their_groups_are_found() {
        let accounts = Accounts::parse(
            "root:x:0:0:root:/root:/bin/bash\nbroken\n+@nis\nci:x:1001:100:C I,,,:/home/ci:/bin/sh\n",
            "root:x:0:\nusers:x:100:ci\ndocker:x:999:other,ci\nbroken:x:many:ci\n",
        );
        let ci = accounts.user("ci").expect("listed");
        assert_eq!(accounts.user_of(Uid::from_raw(1001)), Some(ci));
        assert_eq!(
            (ci.gid, ci.home.to_str()),
            (Gid::from_raw(100), Some("/home/ci"))
        );
        assert_eq!(ci.shell.to_str(), Some("/bin/sh"));
        assert_eq!(
            accounts.groups_of("ci", ci.gid),
            [Gid::from_raw(100), Gid::from_raw(999)]
        );
        assert_eq!(
            accounts.group("docker").map(|group| group.gid),
            Some(Gid::from_raw(999))
        );
        assert_eq!(accounts.user("broken"), None);
        assert_eq!(accounts.group("broken"), None);
    }
}
