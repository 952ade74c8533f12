// How an image is cut for the passes: strips of columns that depend on its width only, bands of rows.
#pragma once

#include <vector>

namespace refusion {

struct Span {
    int first, last;  // [first, last)
};

// Cuts `width` columns into equal strips of which each, with `overlap` more columns, fits into `most` columns and wastes
// few lanes of its vectors.
std::vector<Span> cut_strips(int width, int lanes, int overlap, int most);

// Cuts `height` rows into `count` bands of almost equal, even height, fewer where the image is low.
std::vector<Span> cut_bands(int height, int count);

}  // namespace refusion
