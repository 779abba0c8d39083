//! Asking before what cannot be undone.

use std::io::{IsTerminal, Write};

use clap::Args;

use super::Failure;

/// The option of commands that ask.
#[derive(Debug, Clone, Copy, Args)]
pub struct Confirm {
    /// Does not ask.
    #[arg(long, short)]
    yes: bool,
}

impl Confirm {
    /// Asks whether to do `what`. Where nobody can be asked, it must have been said.
    pub fn ask(self, what: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            let rule = "is to be confirmed, and nobody can be asked: say --yes";
            return Err(Failure::Usage(format!("to {what} {rule}")));
        }
        let mut err = std::io::stderr().lock();
        write!(err, "{what}? [y/N] ")?;
        err.flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            Ok(())
        } else {
            Err(Failure::Here("nothing was done".to_owned()))
        }
    }
}
