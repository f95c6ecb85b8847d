//! Users and groups by name, as an image's own files give them.

use crate::error::Error;

/// The lines of a passwd or group file that have the fields asked for.
fn entries(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 4)
}

/// Who a container runs as.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Groups that the image gives the user beyond the primary one.
    pub groups: Vec<u32>,
}

/// Resolves `user[:group]`, each a name or a number, against the image's passwd and group files (empty if the
/// image has none). A number that no line names stands for itself, with group 0.
///
/// # Errors
/// [`Error::Invalid`] if a name is in neither file.
pub fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Identity, Error> {
    let (user, wanted_group) = spec.split_once(':').map_or((spec, None), |(u, g)| (u, Some(g)));
    let user = if user.is_empty() { "0" } else { user };
    let line = entries(passwd).find(|fields| fields[0] == user || fields[2] == user);
    let (name, uid, primary) = match line {
        Some(fields) => (fields[0], number(fields[2])?, number(fields[3])?),
        None => {
            let uid =
                user.parse().map_err(|_| Error::Invalid(format!("the image knows no user {user:?}")))?;
            ("", uid, 0)
        }
    };
    let gid = match wanted_group {
        Some(wanted) => match entries(group).find(|fields| fields[0] == wanted || fields[2] == wanted) {
            Some(fields) => number(fields[2])?,
            None => {
                wanted.parse().map_err(|_| Error::Invalid(format!("the image knows no group {wanted:?}")))?
            }
        },
        None => primary,
    };
    let member = |fields: &Vec<&str>| !name.is_empty() && fields[3].split(',').any(|member| member == name);
    let groups = entries(group).filter(member).filter_map(|fields| fields[2].parse().ok());
    Ok(Identity { uid, gid, groups: groups.filter(|g| *g != gid).collect() })
}

fn number(text: &str) -> Result<u32, Error> {
    text.parse()
        .map_err(|_| Error::Invalid(format!("the image's passwd or group file has the bad id {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/false\napp:x:1000:1000::/:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\nwww-data:x:33:\nextra:x:50000:app\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        let cases: [(&str, u32, u32, &[u32]); 7] = [
            ("", 0, 0, &[10]),
            ("app", 1000, 1000, &[10, 50000]),
            ("1000", 1000, 1000, &[10, 50000]),
            ("1002", 1002, 0, &[]),
            ("1003:1004", 1003, 1004, &[]),
            ("www-data:wheel", 33, 10, &[]),
            ("app:50000", 1000, 50000, &[10]),
        ];
        for (spec, uid, gid, groups) in cases {
            let identity = Identity { uid, gid, groups: groups.to_vec() };
            assert_eq!(resolve(spec, PASSWD, GROUP).unwrap(), identity, "{spec:?}");
        }
        assert!(resolve("nobody", PASSWD, GROUP).is_err());
        assert!(resolve("app:nogroup", PASSWD, GROUP).is_err());
        assert_eq!(resolve("7", "", "").unwrap().uid, 7);
    }
}
