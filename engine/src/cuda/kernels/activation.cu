// GELU in its two forms, SwiGLU and GeGLU.

#define GELU_ERF 0
#define GELU_TANH 1
#define SWIGLU 2
#define GEGLU_TANH 3

#define ROOT 0.7978846f    // √(2/π)
#define CUBIC 0.044715f    // GELU's tanh form's cubic coefficient
#define DENSITY 0.3989423f // 1 / √(2π)
#define HALF_ROOT 0.70710678f

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

DEVICE float gelu_tanh(float x) { return 0.5f * x * (1.0f + tanhf(ROOT * (x + CUBIC * x * x * x))); }

DEVICE float gelu_tanh_slope(float x) {
    float tangent = tanhf(ROOT * (x + CUBIC * x * x * x));
    return 0.5f * (1.0f + tangent) + 0.5f * x * (1.0f - tangent * tangent) * ROOT * (1.0f + 3.0f * CUBIC * x * x);
}

// out = activation(up), or activation(gate) up
KERNEL(activate)(int kind, u64 length, const float* gate, const float* up, float* out) {
    for (u64 i = thread_index(); i < length; i += thread_count()) {
        float x = up[i];
        if (kind == GELU_ERF) out[i] = 0.5f * x * (1.0f + erff(x * HALF_ROOT));
        else if (kind == GELU_TANH) out[i] = gelu_tanh(x);
        else if (kind == SWIGLU) out[i] = gate[i] * sigmoid(gate[i]) * x;
        else out[i] = gelu_tanh(gate[i]) * x;
    }
}

// `dup` holds the gradient of the output and takes that of `up`; `dgate` is overwritten.
KERNEL(activate_backward)(int kind, u64 length, const float* gate, const float* up, float* dup, float* dgate) {
    for (u64 i = thread_index(); i < length; i += thread_count()) {
        float x = up[i], dout = dup[i];
        if (kind == GELU_ERF) {
            dup[i] = dout * (0.5f * (1.0f + erff(x * HALF_ROOT)) + x * DENSITY * expf(-0.5f * x * x));
        } else if (kind == GELU_TANH) {
            dup[i] = dout * gelu_tanh_slope(x);
        } else if (kind == SWIGLU) {
            float g = gate[i], s = sigmoid(g);
            dup[i] = dout * g * s;
            dgate[i] = dout * x * s * (1.0f + g * (1.0f - s));
        } else {
            float g = gate[i];
            dup[i] = dout * gelu_tanh(g);
            dgate[i] = dout * x * gelu_tanh_slope(g);
        }
    }
}
