//! Decodes images to 8-bit RGB, as Pillow's `open(...).convert("RGB")` does.
//!
//! The format is detected from the content, not from the file name. EXIF orientation is ignored, as in the published
//! pipeline.

use image::codecs::png::PngDecoder;
use image::{DynamicImage, ImageDecoder, Limits};
use std::io::Cursor;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Larger images are rejected, so that a small file cannot allocate gigabytes. Pillow warns from this size on; the
/// largest image of ImageNet has 61 million pixels.
pub const MAX_PIXELS: u64 = 89_478_485;

/// A decoded image: interleaved RGB, row by row, `3 * width * height` bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecodedImage {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// R, G, B of each pixel. A reused buffer may be longer; `rgb` returns the used part.
    pub buffer: Vec<u8>,
}

impl DecodedImage {
    /// Returns the pixels.
    pub fn rgb(&self) -> &[u8] {
        &self.buffer[..3 * self.width as usize * self.height as usize]
    }
}

/// Description of what is wrong with the bytes; the caller adds the file name.
pub type Fault = String;

/// Decodes a JPEG, PNG or binary PPM into `image`, reusing its buffer.
/// Errors: empty, unknown format, truncated, corrupt, more than `MAX_PIXELS`.
pub fn decode_into(bytes: &[u8], image: &mut DecodedImage) -> Result<(), Fault> {
    match sniff(bytes)? {
        ImageFormat::Jpeg => jpeg(bytes, image),
        ImageFormat::Png => png(bytes, image),
        ImageFormat::Ppm => ppm(bytes, image),
    }
}

/// Decodes into a new image. Errors as for `decode_into`.
pub fn decode(bytes: &[u8]) -> Result<DecodedImage, Fault> {
    let mut image = DecodedImage::default();
    decode_into(bytes, &mut image)?;
    Ok(image)
}

/// Returns width and height from the header alone.
pub fn dimensions(bytes: &[u8]) -> Result<(u32, u32), Fault> {
    match sniff(bytes)? {
        ImageFormat::Jpeg => {
            let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options());
            decoder.decode_headers().map_err(|e| e.to_string())?;
            let (width, height) = decoder.dimensions().ok_or("JPEG without dimensions")?;
            checked(width as u64, height as u64)
        }
        ImageFormat::Png => {
            let decoder = PngDecoder::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
            let (width, height) = decoder.dimensions();
            checked(width.into(), height.into())
        }
        ImageFormat::Ppm => ppm_header(bytes).map(|(width, height, _)| (width, height)),
    }
}

enum ImageFormat {
    Jpeg,
    Png,
    /// Uncompressed pixels, as `pack` stores data sets without image files.
    Ppm,
}

fn sniff(bytes: &[u8]) -> Result<ImageFormat, Fault> {
    match bytes {
        [] => Err("the file is empty".into()),
        [0xFF, 0xD8, 0xFF, ..] => Ok(ImageFormat::Jpeg),
        [0x89, b'P', b'N', b'G', ..] => Ok(ImageFormat::Png),
        [b'P', b'6', ..] => Ok(ImageFormat::Ppm),
        _ => Err("expected a JPEG, PNG or binary PPM".into()),
    }
}

fn options() -> DecoderOptions {
    // Not strict: real photos have harmless faults (bytes between segments, unusual markers) that Pillow accepts too.
    DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(u16::MAX.into())
        .set_max_height(u16::MAX.into())
        .jpeg_set_out_colorspace(ColorSpace::RGB)
}

fn checked(width: u64, height: u64) -> Result<(u32, u32), Fault> {
    // Shards store sizes in 16 bits, as JPEG does.
    let side = u64::from(u16::MAX);
    if width == 0 || height == 0 {
        return Err(format!("{width} x {height} pixels"));
    }
    if width > side || height > side || width * height > MAX_PIXELS {
        return Err(format!(
            "{width} x {height} pixels, expected at most {MAX_PIXELS} and at most {side} per side"
        ));
    }
    Ok((width as u32, height as u32))
}

fn jpeg(bytes: &[u8], image: &mut DecodedImage) -> Result<(), Fault> {
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options());
    decoder.decode_headers().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("JPEG without dimensions")?;
    let (width, height) = checked(width as u64, height as u64)?;
    // The decoder fills missing parts with grey; Pillow treats them as an error, and so do we.
    if !has_end(bytes) {
        return Err("the JPEG is truncated (no end-of-image marker)".into());
    }
    let needed = decoder.output_buffer_size().ok_or("JPEG without dimensions")?;
    if needed != 3 * width as usize * height as usize {
        return Err("JPEG with an unknown number of colour components".into());
    }
    if image.buffer.len() < needed {
        image.buffer.resize(needed, 0);
    }
    let pixels = &mut image.buffer[..needed];
    decoder.decode_into(pixels).map_err(|e| e.to_string())?;
    (image.width, image.height) = (width, height);
    Ok(())
}

/// Returns whether an end-of-image marker follows the start of the (first) scan. Segments before it are skipped, since
/// an EXIF thumbnail has its own end marker; compressed data cannot contain one.
fn has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        match bytes.get(at..at + 4) {
            Some([0xFF, 0xDA, ..]) => break,
            Some([0xFF, 0xFF, ..]) => at += 1,
            Some([0xFF, _, high, low]) => at += 2 + usize::from(u16::from_be_bytes([*high, *low])).max(2),
            // Bytes between segments: find the next marker.
            Some(_) => at += 1,
            None => return false,
        }
    }
    bytes[at..].windows(2).rev().any(|pair| pair == [0xFF, 0xD9])
}

fn png(bytes: &[u8], image: &mut DecodedImage) -> Result<(), Fault> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(10 * MAX_PIXELS); // 16-bit RGBA with some margin
    let mut decoder =
        PngDecoder::with_limits(Cursor::new(bytes), limits.clone()).map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    let (width, height) = checked(width.into(), height.into())?;
    decoder.set_limits(limits).map_err(|e| e.to_string())?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?;
    // As in Pillow: the high byte of 16-bit samples, without alpha.
    let high = |sample: u16| (sample >> 8) as u8;
    image.buffer = match decoded {
        DynamicImage::ImageRgb16(image) => image.into_raw().into_iter().map(high).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.pixels().flat_map(|p| [p[0], p[1], p[2]].map(high)).collect()
        }
        DynamicImage::ImageLuma16(image) => image.pixels().flat_map(|p| [high(p[0]); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => image.pixels().flat_map(|p| [high(p[0]); 3]).collect(),
        other => other.into_rgb8().into_raw(),
    };
    (image.width, image.height) = (width, height);
    Ok(())
}

/// Returns width, height and the offset of the pixels. Comments, which the format allows, are rejected.
fn ppm_header(bytes: &[u8]) -> Result<(u32, u32, usize), Fault> {
    let wrong = || "the PPM header is not \"P6 WIDTH HEIGHT 255\"".to_owned();
    let (mut numbers, mut at) = ([0u64; 3], 2);
    for number in &mut numbers {
        let spaces = bytes[at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        let digits = bytes[at + spaces..].iter().take_while(|b| b.is_ascii_digit()).count();
        if spaces == 0 || !(1..=9).contains(&digits) {
            return Err(wrong());
        }
        at += spaces + digits;
        *number = bytes[at - digits..at].iter().fold(0, |n, digit| 10 * n + u64::from(digit - b'0'));
    }
    if numbers[2] != 255 || !bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        return Err(wrong());
    }
    let (width, height) = checked(numbers[0], numbers[1])?;
    Ok((width, height, at + 1))
}

fn ppm(bytes: &[u8], image: &mut DecodedImage) -> Result<(), Fault> {
    let (width, height, start) = ppm_header(bytes)?;
    let needed = 3 * width as usize * height as usize;
    if bytes.len() - start != needed {
        return Err(format!("expected {needed} bytes of PPM pixels, found {}", bytes.len() - start));
    }
    if image.buffer.len() < needed {
        image.buffer.resize(needed, 0);
    }
    image.buffer[..needed].copy_from_slice(&bytes[start..]);
    (image.width, image.height) = (width, height);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageEncoder, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};

    fn encoded_png(pixels: &[u8], kind: image::ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(pixels, 2, 1, kind).unwrap();
        bytes
    }

    fn encoded_jpeg(width: u32, height: u32) -> Vec<u8> {
        let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i * 7) as u8).collect();
        let mut bytes = Vec::new();
        JpegEncoder::new(&mut bytes).encode(&pixels, width, height, image::ExtendedColorType::Rgb8).unwrap();
        bytes
    }

    #[test]
    fn png_kinds_become_rgb_as_in_pillow() {
        use image::ExtendedColorType as Kind;
        let sixteen: Vec<u8> = [0x12FFu16, 0x00FF, 0xFFFF, 0x8000, 0x7FFF, 0x0100]
            .iter()
            .flat_map(|s| s.to_ne_bytes())
            .collect();
        let image = decode(&encoded_png(&sixteen, Kind::Rgb16)).unwrap();
        assert_eq!(image.rgb(), [0x12, 0, 0xFF, 0x80, 0x7F, 1]);
        let alpha = decode(&encoded_png(&[1, 2, 3, 0, 4, 5, 6, 255], Kind::Rgba8)).unwrap();
        assert_eq!(alpha.rgb(), [1, 2, 3, 4, 5, 6]);
        let grey = decode(&encoded_png(&[9, 200], Kind::L8)).unwrap();
        assert_eq!(grey.rgb(), [9, 9, 9, 200, 200, 200]);
    }

    #[test]
    fn ppm_is_a_header_and_pixels() {
        let good = b"P6\n2 1\n255\n\x0a\x20\x30456".to_vec();
        let image = decode(&good).unwrap();
        assert_eq!((image.width, image.height, image.rgb()), (2, 1, b"\x0a\x20\x30456".as_slice()));
        assert_eq!(dimensions(&good).unwrap(), (2, 1));
        let fault = |bytes: &[u8]| decode(bytes).unwrap_err();
        assert!(fault(&good[..good.len() - 1]).contains("expected 6 bytes of PPM pixels, found 5"));
        assert!(fault(&[good.as_slice(), b"7"].concat()).contains("found 7"));
        for header in
            ["P6", "P6\n2 1\n", "P6\n2 1\n255", "P62 1\n255\n", "P6\n# c\n2 1\n255\n", "P6\n2 1\n65535\n"]
        {
            assert!(fault(header.as_bytes()).contains("header"), "{header}");
        }
        assert!(fault(b"P6\n0 1\n255\n").contains("0 x 1 pixels"));
        assert!(fault(b"P6\n65536 1\n255\n").contains("at most 65535 per side"));
    }

    #[test]
    fn a_reused_buffer_may_be_larger_than_the_image() {
        let mut image = decode(&encoded_jpeg(40, 30)).unwrap();
        decode_into(&encoded_jpeg(1, 1), &mut image).unwrap();
        assert_eq!((image.width, image.height), (1, 1));
        assert_eq!(image.rgb().len(), 3);
        assert_eq!(dimensions(&encoded_jpeg(40, 30)).unwrap(), (40, 30));
    }

    #[test]
    fn faults_are_distinguished() {
        let whole = encoded_jpeg(64, 64);
        assert!(decode(&whole).is_ok());
        assert!(decode(&[]).unwrap_err().contains("empty"));
        assert!(decode(b"some text").unwrap_err().contains("expected a JPEG, PNG or binary PPM"));
        for len in 3..whole.len() {
            assert!(decode(&whole[..len]).is_err(), "cut at {len}");
        }
        assert!(decode(&whole[..whole.len() * 6 / 10]).unwrap_err().contains("truncated"));
    }

    #[test]
    fn a_thumbnail_does_not_hide_truncation() {
        let whole = encoded_jpeg(64, 64);
        // An APP1 segment that contains an end-of-image marker, as EXIF thumbnails do.
        let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE1, 0x00, 0x06, 0xFF, 0xD9, 0xFF, 0xD9];
        bytes.extend(&whole[2..]);
        assert!(decode(&bytes).is_ok());
        assert!(decode(&bytes[..bytes.len() - 2]).is_err());
    }

    #[test]
    fn a_decompression_bomb_is_rejected_before_decoding() {
        // A JPEG that claims 65500 x 65500 pixels.
        let mut bytes = encoded_jpeg(8, 8);
        let sof = bytes.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
        bytes[sof + 5..sof + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
        assert!(decode(&bytes).unwrap_err().contains("expected at most"));
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let jpeg = encoded_jpeg(24, 17);
        let png = encoded_png(&[1, 2, 3, 4, 5, 6], image::ExtendedColorType::Rgb8);
        for whole in [jpeg, png, b"P6\n2 1\n255\n123456".to_vec()] {
            for at in 0..whole.len() {
                for flip in [0xFF, 0x01, 0x80] {
                    let mut bytes = whole.clone();
                    bytes[at] ^= flip;
                    let _ = decode(&bytes);
                    let _ = dimensions(&bytes);
                }
            }
        }
    }
}
