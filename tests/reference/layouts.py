"""Section "Pixel formats": the planes of each `pix_fmt`."""

from __future__ import annotations

# letters, log2_chroma_w, log2_chroma_h, bit depth, names
ROWS = [
    ("Y", 0, 0, 8, "gray"),
    ("Y", 0, 0, 9, "gray9le"),
    ("Y", 0, 0, 10, "gray10le"),
    ("Y", 0, 0, 12, "gray12le"),
    ("Y", 0, 0, 14, "gray14le"),
    ("Y", 0, 0, 16, "gray16le"),
    ("YA", 0, 0, 8, "ya8"),
    ("YA", 0, 0, 16, "ya16le"),
    ("YUV", 0, 0, 8, "yuv444p yuvj444p nv24"),
    ("YUV", 0, 0, 9, "yuv444p9le"),
    ("YUV", 0, 0, 10, "yuv444p10le"),
    ("YUV", 0, 0, 12, "yuv444p12le"),
    ("YUV", 0, 0, 14, "yuv444p14le"),
    ("YUV", 0, 0, 16, "yuv444p16le"),
    ("YUV", 0, 1, 8, "yuv440p yuvj440p"),
    ("YUV", 0, 1, 10, "yuv440p10le"),
    ("YUV", 0, 1, 12, "yuv440p12le"),
    ("YUV", 1, 0, 8, "yuv422p yuvj422p nv16 yuyv422 uyvy422"),
    ("YUV", 1, 0, 9, "yuv422p9le"),
    ("YUV", 1, 0, 10, "yuv422p10le"),
    ("YUV", 1, 0, 12, "yuv422p12le"),
    ("YUV", 1, 0, 14, "yuv422p14le"),
    ("YUV", 1, 0, 16, "yuv422p16le"),
    ("YUV", 1, 1, 8, "yuv420p yuvj420p nv12 nv21"),
    ("YUV", 1, 1, 9, "yuv420p9le"),
    ("YUV", 1, 1, 10, "yuv420p10le"),
    ("YUV", 1, 1, 12, "yuv420p12le"),
    ("YUV", 1, 1, 14, "yuv420p14le"),
    ("YUV", 1, 1, 16, "yuv420p16le"),
    ("YUV", 2, 0, 8, "yuv411p yuvj411p"),
    ("YUV", 2, 2, 8, "yuv410p"),
    ("YUVA", 0, 0, 8, "yuva444p"),
    ("YUVA", 0, 0, 9, "yuva444p9le"),
    ("YUVA", 0, 0, 10, "yuva444p10le"),
    ("YUVA", 0, 0, 12, "yuva444p12le"),
    ("YUVA", 0, 0, 16, "yuva444p16le"),
    ("YUVA", 1, 0, 8, "yuva422p"),
    ("YUVA", 1, 0, 9, "yuva422p9le"),
    ("YUVA", 1, 0, 10, "yuva422p10le"),
    ("YUVA", 1, 0, 12, "yuva422p12le"),
    ("YUVA", 1, 0, 16, "yuva422p16le"),
    ("YUVA", 1, 1, 8, "yuva420p"),
    ("YUVA", 1, 1, 9, "yuva420p9le"),
    ("YUVA", 1, 1, 10, "yuva420p10le"),
    ("YUVA", 1, 1, 16, "yuva420p16le"),
    ("RGB", 0, 0, 8, "gbrp rgb24 bgr24 rgb565le bgr565le"),
    ("RGB", 0, 0, 9, "gbrp9le"),
    ("RGB", 0, 0, 10, "gbrp10le"),
    ("RGB", 0, 0, 12, "gbrp12le"),
    ("RGB", 0, 0, 14, "gbrp14le"),
    ("RGB", 0, 0, 16, "gbrp16le rgb48le bgr48le"),
    ("RGBA", 0, 0, 8, "gbrap rgba bgra argb abgr"),
    ("RGBA", 0, 0, 10, "gbrap10le"),
    ("RGBA", 0, 0, 12, "gbrap12le"),
    ("RGBA", 0, 0, 14, "gbrap14le"),
    ("RGBA", 0, 0, 16, "gbrap16le rgba64le bgra64le"),
    ("RGBX", 0, 0, 8, "rgb0 bgr0 0rgb 0bgr rgb555le bgr555le"),
]
# name: (letters, bit depth, log2_chroma_w, log2_chroma_h)
LAYOUTS = {
    name: (letters, depth, log2_w, log2_h)
    for letters, log2_w, log2_h, depth, names in ROWS
    for name in names.split()
}


def plane_shapes(pix_fmt: str, width: int, height: int) -> list[tuple[int, int]]:
    """(height, width) of each plane."""
    letters, _, log2_w, log2_h = LAYOUTS[pix_fmt]
    small = -(-height // 2**log2_h), -(-width // 2**log2_w)
    return [small if letter in "UV" else (height, width) for letter in letters]
