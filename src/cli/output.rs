//! How answers are printed: aligned columns, JSON, or a template with `{{.Field}}`.

use crate::api::{ApiError, Code};
use serde::Serialize;
use serde_json::Value;
use std::io::Write;
use std::str::FromStr;

/// What `--format` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// The API's JSON, an array where several can be asked for.
    Json,
    /// A line for each object.
    Template(Template),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            _ if text.contains("{{") => Template::parse(text).map(Self::Template),
            _ => Err("expected table, json or a template as '{{.Name}} {{.Health}}'".to_owned()),
        }
    }
}

/// Text with fields of an object: `{{.Name}}`, `{{.Master.NodeName}}`; case does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Vec<String>),
}

impl Template {
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let (field, after) = after.split_once("}}").ok_or("a {{ has no }}")?;
            let field = field.trim();
            let path = field
                .strip_prefix('.')
                .ok_or_else(|| format!("{field:?} is not a field: it should look like .Name"))?;
            if path.is_empty()
                || path
                    .split('.')
                    .any(|key| key.is_empty() || key.contains(char::is_whitespace))
            {
                return Err(format!(
                    "{field:?} is not a field: only names as .Name or .Master.NodeName are understood"
                ));
            }
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Field(path.split('.').map(str::to_owned).collect()));
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    fn fill(&self, object: &Value) -> Result<String, ApiError> {
        let mut line = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Field(path) => line.push_str(&field(object, path)?),
            }
        }
        Ok(line)
    }
}

fn field(object: &Value, path: &[String]) -> Result<String, ApiError> {
    let mut value = object;
    for key in path {
        value = match value {
            Value::Null => return Ok(String::new()),
            Value::Object(map) => map
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(key))
                .map(|(_, value)| value)
                .ok_or_else(|| {
                    let known: Vec<&str> = map.keys().map(String::as_str).collect();
                    ApiError::new(Code::Usage, format!("there is no field .{}", path.join(".")))
                        .hint(format!("fields: {}", known.join(", ")))
                })?,
            _ => {
                return Err(ApiError::new(
                    Code::Usage,
                    format!("there is no field .{}", path.join(".")),
                ));
            }
        };
    }
    Ok(match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

/// The JSON of a list, indented, with a line feed at its end.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, ApiError> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|e| ApiError::internal(format!("the answer cannot be written as JSON: {e}")))
}

/// A list in the format asked for; `row` gives an object's columns.
pub(crate) fn list<T: Serialize>(
    format: &Format,
    header: &[&str],
    objects: &[T],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<String, ApiError> {
    match format {
        Format::Table => Ok(table(header, objects.iter().map(row))),
        Format::Json => json(objects),
        Format::Template(template) => {
            let mut text = String::new();
            for object in objects {
                let value = serde_json::to_value(object)
                    .map_err(|e| ApiError::internal(format!("the answer cannot be written as JSON: {e}")))?;
                text.push_str(&template.fill(&value)?);
                text.push('\n');
            }
            Ok(text)
        }
    }
}

/// Aligned columns.
pub(crate) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut writer = tabwriter::TabWriter::new(Vec::new()).padding(2);
    let mut text = header.join("\t") + "\n";
    for row in rows {
        // A tab or line feed in a value would break the columns.
        let cells: Vec<String> = row.iter().map(|cell| cell.replace(['\t', '\n', '\r'], " ")).collect();
        text.push_str(&cells.join("\t"));
        text.push('\n');
    }
    // Writing to memory does not fail.
    let aligned = writer
        .write_all(text.as_bytes())
        .and_then(|()| writer.flush())
        .ok()
        .and_then(|()| writer.into_inner().ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or(text);
    aligned.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Bytes with a binary unit, as short as it can be read: `5 GiB`, `1.5 GiB`, `512 B`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // 64 bits have at most six steps of ten bits; a tenth is precise enough for people.
    let step = (63 - count.leading_zeros()) / 10;
    let unit = UNITS[(step - 1) as usize];
    let tenths = u128::from(count) * 10 / (1_u128 << (10 * step));
    if tenths.is_multiple_of(10) {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// A span of time in its largest unit: `20 hours`.
pub(crate) fn span(seconds: i64) -> String {
    let (count, unit) = match seconds.max(0) {
        s @ 0..60 => (s, "second"),
        s @ 60..3600 => (s / 60, "minute"),
        s @ 3600..86400 => (s / 3600, "hour"),
        s => (s / 86400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}
