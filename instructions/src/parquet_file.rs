//! Records in Parquet, as Hugging Face datasets keep them: read with any of the codecs, written with Snappy's.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Once};

use ::parquet::basic::{Compression, ConvertedType, LogicalType, Type as PhysicalType};
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;
use ::parquet::schema::types::Type;
use anyhow::{Context, Result, bail};
use bytes::Bytes;

use crate::files::atomic_write;
use crate::record::{Record, Row, RowReader};

/// The first bytes of every Parquet file, and its last.
pub(crate) const MAGIC: &[u8] = b"PAR1";

/// The columns that a record can be made of; others are not read.
const COLUMNS: [&str; 10] = [
    "id",
    "language",
    "instruction",
    "input",
    "context",
    "output",
    "response",
    "origin",
    "conversations",
    "messages",
];

/// Rows of one row group when writing: some ten megabytes of text.
const ROWS_A_GROUP: usize = 20_000;

/// Reads the rows of a Parquet file's bytes into `reader`. Columns have the names of JSON's keys; `conversations` and
/// `messages` are lists of structs.
///
/// # Errors
/// Where the file is broken, has none of the columns, or has binary ones where text is expected.
pub(crate) fn read_rows(path: &Path, bytes: Vec<u8>, reader: &mut RowReader) -> Result<()> {
    // The library's decoders check most of what they read, not all: what they stumble over is a broken file.
    let read = without_a_word(|| catch_unwind(AssertUnwindSafe(|| read_columns(bytes, reader))));
    let broken = || format!("{}: a Parquet file that is broken or cut short", path.display());
    match read {
        Ok(Err(error)) if error.is::<WrongColumns>() => Err(error.context(path.display().to_string())),
        Ok(read) => read.with_context(broken),
        Err(_) => bail!("{}", broken()),
    }
}

/// A whole file whose columns make no record.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongColumns(String);

thread_local! {
    /// Whether a panic on this thread is a file's fault, and told as an error.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Calls a function whose panics are caught, and not printed.
fn without_a_word<T>(call: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !EXPECTED.get() {
                print(panic);
            }
        }));
    });
    EXPECTED.set(true);
    let come_to = call();
    EXPECTED.set(false);
    come_to
}

fn read_columns(bytes: Vec<u8>, reader: &mut RowReader) -> Result<()> {
    let file = SerializedFileReader::new(Bytes::from(bytes))?;
    let schema = file.metadata().file_metadata().schema();
    let all = schema.get_fields();
    let columns: Vec<Arc<Type>> =
        all.iter().filter(|column| COLUMNS.contains(&column.name())).cloned().collect();
    if columns.iter().all(|column| column.name() == "origin") {
        let found: Vec<&str> = all.iter().map(|column| column.name()).collect();
        let found = found.join(", ");
        let what = format!("it has the columns {found}: expected `instruction` and `output`, or a chat");
        return Err(WrongColumns(what).into());
    }
    for column in &columns {
        if let Some(binary) = binary_column(column) {
            let what = format!("its column `{binary}` is binary: expected text");
            return Err(WrongColumns(what).into());
        }
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(columns).build()?;
    for row in file.get_row_iter(Some(projection))? {
        let row = row?.to_json_value();
        reader.add(None, serde_json::from_value::<Row>(row).map_err(|error| error.to_string()));
    }
    Ok(())
}

/// The name of a column of bytes that are not said to be text.
fn binary_column(column: &Type) -> Option<&str> {
    if !column.is_primitive() {
        return column.get_fields().iter().find_map(|field| binary_column(field));
    }
    let info = column.get_basic_info();
    let bytes = matches!(
        column.get_physical_type(),
        PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY | PhysicalType::INT96
    );
    let text =
        matches!(info.logical_type_ref(), Some(LogicalType::String | LogicalType::Json | LogicalType::Enum))
            || matches!(
                info.converted_type(),
                ConvertedType::UTF8 | ConvertedType::JSON | ConvertedType::ENUM
            );
    (bytes && !text).then(|| column.name())
}

/// Writes records with the columns `id`, `language`, `instruction`, `input`, `output` and `origin`. Atomic.
///
/// # Errors
/// Where the file cannot be written.
pub(crate) fn write_parquet(path: &Path, records: &[Record]) -> Result<()> {
    atomic_write(path, |writer| write_groups(writer, records))
}

fn write_groups(writer: &mut BufWriter<File>, records: &[Record]) -> Result<()> {
    const SCHEMA: &str = "message records {
        required binary id (UTF8);
        required binary language (UTF8);
        required binary instruction (UTF8);
        required binary input (UTF8);
        required binary output (UTF8);
        optional binary origin (UTF8);
    }";
    let texts: [fn(&Record) -> &str; 5] = [
        |record| &record.id,
        |record| record.language.code(),
        |record| &record.instruction,
        |record| &record.input,
        |record| &record.output,
    ];
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut file = SerializedFileWriter::new(writer, schema, Arc::new(properties))?;
    for rows in records.chunks(ROWS_A_GROUP) {
        let mut group = file.next_row_group()?;
        for text in texts {
            let Some(mut column) = group.next_column()? else { bail!("the schema lacks a column") };
            let values: Vec<ByteArray> =
                rows.iter().map(|record| ByteArray::from(text(record).as_bytes().to_vec())).collect();
            column.typed::<ByteArrayType>().write_batch(&values, None, None)?;
            column.close()?;
        }
        write_origins(&mut group, rows)?;
        group.close()?;
    }
    file.close()?;
    Ok(())
}

/// The last column: null where a record tells no origin.
fn write_origins<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    rows: &[Record],
) -> Result<()> {
    let Some(mut column) = group.next_column()? else { bail!("the schema lacks a column") };
    let told = rows.iter().filter_map(|record| record.origin);
    let values: Vec<ByteArray> = told.map(|origin| ByteArray::from(origin.name())).collect();
    let defined: Vec<i16> = rows.iter().map(|record| i16::from(record.origin.is_some())).collect();
    column.typed::<ByteArrayType>().write_batch(&values, Some(&defined), None)?;
    column.close()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::language::Language;
    use crate::recipe::Origin;
    use crate::record::{Repeats, read_record_bytes, read_records, write_set};

    fn goldens() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/goldens/parquet")
    }

    fn expected() -> Vec<Record> {
        #[derive(serde::Deserialize)]
        struct Golden {
            rows: Vec<Row>,
        }
        let text = std::fs::read(goldens().join("rows.json")).expect("the golden");
        let golden: Golden = serde_json::from_slice(&text).expect("JSON");
        let english = Language::english();
        let mut reader = RowReader::new(Path::new("golden"), &english, Repeats::LeftOut);
        golden.rows.into_iter().for_each(|row| reader.add(None, Ok(row)));
        reader.finish().reading.items
    }

    #[test]
    fn what_pyarrow_writes_is_read_with_every_codec_and_form() {
        let expected = expected();
        assert_eq!(expected.len(), 12);
        for (name, chat) in [
            ("alpaca-snappy", false),
            ("alpaca-zstd", false),
            ("alpaca-gzip", false),
            ("alpaca-brotli", false),
            ("alpaca-lz4", false),
            ("large-strings", false),
            ("messages", true),
            ("sharegpt", true),
        ] {
            let path = goldens().join(format!("{name}.parquet"));
            let reading = read_records(&path, &Language::english()).expect(name);
            assert!(reading.problems.is_empty(), "{name}: {:?}", reading.problems);
            assert_eq!(reading.items.len(), expected.len(), "{name}");
            for (found, expected) in reading.items.iter().zip(&expected) {
                let first = if name == "large-strings" { 100 } else { 0 };
                let number: usize = expected.id.parse().expect("a number");
                assert_eq!(found.id, (first + number).to_string(), "{name}");
                let input = if chat { "" } else { expected.input.as_str() };
                let texts = (found.instruction.as_str(), found.input.as_str(), found.output.as_str());
                assert_eq!(texts, (expected.instruction.as_str(), input, expected.output.as_str()), "{name}");
            }
        }
    }

    #[test]
    fn other_columns_are_named() {
        for (name, said) in [("binary", "`instruction` is binary"), ("other", "it has the columns text")] {
            let path = goldens().join(format!("{name}.parquet"));
            let error = read_records(&path, &Language::english()).expect_err(name);
            assert!(format!("{error:#}").contains(said), "{error:#}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("set.parquet");
        for rows in [0, 1, ROWS_A_GROUP + 1] {
            let records: Vec<Record> = (0..rows)
                .map(|number| Record {
                    id: format!("row-{number}"),
                    language: "fi".parse().expect("a code"),
                    instruction: format!("Sano {number}, ä."),
                    input: String::new(),
                    output: number.to_string(),
                    origin: (number % 2 == 0).then_some(Origin::Translated),
                })
                .collect();
            write_set(&path, &records).expect("written");
            assert_eq!(read_records(&path, &Language::english()).expect("read").items, records);
        }
    }

    #[test]
    fn a_file_cut_short_or_changed_is_named_and_nothing_panics() {
        let path = goldens().join("alpaca-snappy.parquet");
        let whole = std::fs::read(&path).expect("the golden");
        for length in (4..whole.len()).step_by(97) {
            let error = read_record_bytes(&path, whole[..length].to_vec(), &Language::english());
            let error = error.expect_err("cut short");
            assert!(format!("{error:#}").contains("broken or cut short"), "{error:#}");
        }
        for place in (4..whole.len()).step_by(7) {
            let mut changed = whole.clone();
            changed[place] ^= 0x55;
            // Some bytes are text: then it is read, with another text.
            if let Err(error) = read_record_bytes(&path, changed, &Language::english()) {
                assert!(format!("{error:#}").contains("alpaca-snappy.parquet"), "{error:#}");
            }
        }
    }
}
