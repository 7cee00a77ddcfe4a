// Packed codes of groups of channels back to floats. Specification: `quantise.Grouped.decode` in plain torch.

#include "common.h"

namespace dsv2 {
namespace {

// Write pieces of `size` bits, 8 / size in a byte, into the codes of one vector or, `shift` bits up, beside what is there.
template <int size, int shift>
const uint8_t* unpack_pieces(const uint8_t* __restrict packed, int64_t width, uint8_t* __restrict codes) {
  constexpr uint8_t mask = (1 << size) - 1;
  const int64_t length = (width * size + 7) / 8;
  for (int place = 0; place * length < width; ++place) {
    const int64_t count = std::min(length, width - place * length);
    uint8_t* __restrict part = codes + place * length;
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t piece = (packed[i] >> (place * size)) & mask;
      part[i] = shift ? part[i] | (piece << shift) : piece;
    }
  }
  return packed + length;
}

// Unpack the codes of one vector; `bits` as in `quantise.PIECES`.
void unpack(const uint8_t* packed, int64_t bits, int64_t width, uint8_t* codes) {
  switch (bits) {
    case 8: unpack_pieces<8, 0>(packed, width, codes); break;
    case 6: unpack_pieces<2, 4>(unpack_pieces<4, 0>(packed, width, codes), width, codes); break;
    case 5: unpack_pieces<1, 4>(unpack_pieces<4, 0>(packed, width, codes), width, codes); break;
    case 4: unpack_pieces<4, 0>(packed, width, codes); break;
    case 3: unpack_pieces<1, 2>(unpack_pieces<2, 0>(packed, width, codes), width, codes); break;
    default: unpack_pieces<2, 0>(packed, width, codes);
  }
}

// codes (..., bytes) uint8 of `bits` bits, ranges (..., n, 2) float16 or float32: (..., width) float32.
Tensor dequantise(const Tensor& codes_in, const Tensor& ranges_in, int64_t bits, int64_t width, int64_t group) {
  const Tensor codes = codes_in.contiguous(), ranges = ranges_in.to(at::kFloat).contiguous();
  auto sizes = codes.sizes().vec();
  const int64_t bytes = sizes.back(), groups = (width + group - 1) / group;
  sizes.back() = width;
  Tensor out = at::empty(sizes, ranges.options());
  const Matrix to = matrix(out);
  const uint8_t* from = codes.data_ptr<uint8_t>();
  over_rows(to.rows, width, [&](int64_t first, int64_t last) {
    std::vector<uint8_t> unpacked(width);
    for (int64_t row = first; row < last; ++row) {
      unpack(from + row * bytes, bits, width, unpacked.data());
      for (int64_t n = 0; n < groups; ++n) {
        const float* range = pointer(ranges) + (row * groups + n) * 2;
        const float scale = range[0], offset = range[1];
        const uint8_t* __restrict code = unpacked.data() + n * group;
        float* __restrict value = to.row(row) + n * group;
        const int64_t count = std::min(group, width - n * group);
        for (int64_t i = 0; i < count; ++i) value[i] = static_cast<float>(code[i]) * scale + offset;
      }
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dsv2, m) {
  m.def("dequantise(Tensor codes, Tensor ranges, int bits, int width, int group) -> Tensor");
}
TORCH_LIBRARY_IMPL(dsv2, CPU, m) { m.impl("dequantise", dequantise); }

}  // namespace dsv2
