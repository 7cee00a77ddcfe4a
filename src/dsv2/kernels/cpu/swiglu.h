// One row of SwiGLU and of its gradient, for the op of this name and for the routed experts.
#pragma once

#include "common.h"

namespace dsv2 {

inline Vec sigmoid(Vec x) { return Vec(1) / (Vec(1) + x.neg().exp()); }

// out (W,) = factor * silu(gate) * up of gate_up (2W,).
inline void swiglu_row(const float* gate_up, int64_t width, float factor, float* out) {
  columns(width, [&](int64_t i, int64_t c) {
    const Vec gate = load(gate_up, i, c), up = load(gate_up + width, i, c);
    store(out, i, c, Vec(factor) * gate * sigmoid(gate) * up);
  });
}

// The gradient (2W,) of gate_up from factor * grad (W,).
inline void swiglu_row_backward(const float* grad, const float* gate_up, int64_t width, float factor, float* out) {
  columns(width, [&](int64_t i, int64_t c) {
    const Vec gate = load(gate_up, i, c), up = load(gate_up + width, i, c), g = Vec(factor) * load(grad, i, c);
    const Vec s = sigmoid(gate);
    store(out, i, c, g * up * s * (Vec(1) + gate * (Vec(1) - s)));
    store(out + width, i, c, g * gate * s);
  });
}

}  // namespace dsv2
