//! The Python client that a test drives, in a virtual environment of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::Places;
use crate::{Result, command, prepare};

/// Tells the tests where Python is, or why there is none.
pub fn tell(places: &Places, tests: &mut Command) {
    match environment(places) {
        Ok(python) => tests.env("WHARF_PYTHON", python),
        Err(error) => {
            println!("    without the Python client: {error}");
            tests.env("WHARF_NO_PYTHON", error.to_string())
        }
    };
}

/// Its Python. Made once for these requirements.
fn environment(places: &Places) -> Result<PathBuf> {
    prepare::for_python()?;
    let wanted = places.root.join("tests/compat/python/requirements.txt");
    let dir = places.target.join("python");
    let (python, has) = (dir.join("bin/python"), dir.join("requirements.txt"));
    if same(&wanted, &has) && python.exists() {
        return Ok(python);
    }
    let _ = fs::remove_dir_all(&dir);
    command::quiet(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&dir))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "-r"]);
    command::quiet(pip.arg(&wanted))?;
    fs::copy(&wanted, &has)?;
    Ok(python)
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((fs::read(a), fs::read(b)), (Ok(a), Ok(b)) if a == b)
}
