//! `portcullis check`

use std::process::ExitCode;

use serde_json::json;

use super::Report;
use crate::config::{LoadError, Source, check};

pub(super) fn run(source: &Source) -> anyhow::Result<Report> {
    let (faults, notes) = match source.parse() {
        Ok(config) => (check::check(&config, source), check::notes(&config)),
        Err(LoadError::Invalid { faults, .. }) => (faults, Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let file = source.path().map(|path| path.display().to_string());
    let json = json!({ "file": file, "faults": faults, "notes": notes });
    let name = file.as_deref().unwrap_or("built-in defaults");
    let lines: Vec<_> = faults
        .iter()
        .map(|fault| format!("{name}: {fault}\n"))
        .collect();
    let text = if faults.is_empty() {
        format!("{name}: good\n")
    } else {
        lines.concat()
    };
    let code = if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    Ok(Report {
        text,
        json,
        notes,
        code,
    })
}
