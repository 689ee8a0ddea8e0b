//! Records in Parquet, as Hugging Face datasets keep them: read with any of the codecs, written with Snappy's.

use std::fs::File;
use std::io::BufWriter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ::parquet::basic::{Compression, ConvertedType, LogicalType, Type as PhysicalType};
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use ::parquet::schema::types::Type;
use anyhow::{Context, Result, bail};
use bytes::Bytes;

use crate::files::atomic_write;
use crate::record::{Record, Row, RowReader};

/// The first bytes of every Parquet file, and its last.
pub(crate) const MAGIC: &[u8] = b"PAR1";

/// The columns that a record can be made of; others are not read.
const COLUMNS: [&str; 9] = [
    "id",
    "language",
    "instruction",
    "input",
    "context",
    "output",
    "response",
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
    let read = catch_unwind(AssertUnwindSafe(|| read_columns(bytes, reader)));
    let broken = || format!("{}: a Parquet file that is broken or cut short", path.display());
    match read {
        Ok(read) => read.with_context(broken),
        Err(_) => bail!("{}", broken()),
    }
}

fn read_columns(bytes: Vec<u8>, reader: &mut RowReader) -> Result<()> {
    let file = SerializedFileReader::new(Bytes::from(bytes))?;
    let schema = file.metadata().file_metadata().schema();
    let all = schema.get_fields();
    let columns: Vec<Arc<Type>> =
        all.iter().filter(|column| COLUMNS.contains(&column.name())).cloned().collect();
    if columns.is_empty() {
        let found: Vec<&str> = all.iter().map(|column| column.name()).collect();
        bail!("it has the columns {}: expected `instruction` and `output`, or a chat", found.join(", "));
    }
    for column in &columns {
        if let Some(binary) = binary_column(column) {
            bail!("its column `{binary}` is binary: expected text");
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
    let text = matches!(info.logical_type_ref(), Some(LogicalType::String | LogicalType::Json | LogicalType::Enum))
        || matches!(info.converted_type(), ConvertedType::UTF8 | ConvertedType::JSON | ConvertedType::ENUM);
    (bytes && !text).then(|| column.name())
}

/// Writes records with the columns `id`, `language`, `instruction`, `input` and `output`. Atomic.
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
        group.close()?;
    }
    file.close()?;
    Ok(())
}
