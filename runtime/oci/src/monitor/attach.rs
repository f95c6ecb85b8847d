//! Who follows a running container's output, and who writes to its input.

use super::{Reply, Running};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::{
    fs::{OFlags, fcntl_setfl},
    io::write,
};
use std::os::fd::{AsFd, OwnedFd};

/// How many may follow one container: as many terminals as people would look at.
const FOLLOWERS: usize = 16;

/// The pipes of one who follows.
pub(super) struct Follower {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Follower {
    /// Gives it a copy. False when it is to be let go: it left, or it let its pipe run full. The container and its
    /// log never wait for it.
    pub fn take(&mut self, stream: &str, bytes: &[u8]) -> bool {
        let pipe = if stream == "stdout" { &self.stdout } else { &self.stderr };
        pipe.as_ref().is_none_or(|pipe| write(pipe, bytes).is_ok_and(|n| n == bytes.len()))
    }

    /// Whether somebody still reads: a pipe that nobody does is in error. One without pipes follows nothing.
    fn stays(&self) -> bool {
        let pipes = [&self.stdout, &self.stderr].into_iter().flatten();
        let mut fds: Vec<PollFd<'_>> =
            pipes.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::empty())).collect();
        let _ = poll(&mut fds, PollTimeout::ZERO);
        fds.iter().any(|fd| !fd.revents().is_some_and(|events| events.contains(PollFlags::POLLERR)))
    }
}

impl Running {
    /// Takes a follower's pipes and gives it the way to the input.
    pub(super) fn attach(
        &mut self,
        stdin: bool,
        outputs: [bool; 2],
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), String> {
        self.followers.retain(Follower::stays);
        if self.followers.len() >= FOLLOWERS {
            return Err(format!("{FOLLOWERS} are attached to it already"));
        }
        let mut fds = fds.into_iter();
        let mut take = |wanted: bool| -> Result<Option<OwnedFd>, String> {
            let Some(fd) = wanted.then(|| fds.next()).flatten() else { return Ok(None) };
            fcntl_setfl(&fd, OFlags::NONBLOCK).map_err(|cause| format!("pipe: {cause}"))?;
            Ok(Some(fd))
        };
        let follower = Follower { stdout: take(outputs[0])?, stderr: take(outputs[1])? };
        let input = if stdin { self.input()? } else { None };
        self.followers.extend(Some(follower).filter(Follower::stays));
        Ok((Reply::Attached, input.into_iter().collect()))
    }

    /// The terminal, or the writing end of the input. With `stdin_once` it is given away: its reader sees the end
    /// when the one who has it closes it.
    fn input(&mut self) -> Result<Option<OwnedFd>, String> {
        let copy = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().map_err(|cause| format!("stdin: {cause}"));
        if self.plan.terminal {
            return self.outputs.first().map(|output| copy(&output.file)).transpose();
        }
        match &self.stdin {
            Some(_) if self.plan.stdin_once => Ok(self.stdin.take()),
            Some(stdin) => copy(stdin).map(Some),
            None => Ok(None),
        }
    }
}
