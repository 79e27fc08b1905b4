/* Tensor cores: the product of two small matrices of 16 bits, summed in float32, by the 32 threads of a warp
   together. Each has 4 of the 16 × 8 sums: of rows lane/4 and lane/4 + 8 the columns 2 (lane % 4) and the next,
   c[0], c[1] and c[2], c[3]. (PTX ISA, "Matrix fragments for mma.m16n8k16"; and "ldmatrix".) */

#ifdef __CUDACC_RTC__                                              /* tests/cuda_on_cpu/cuda.h does it on a CPU */

/* Two numbers side by side, the first in the lower half. */
__device__ inline unsigned pair(float first, float second, bfloat16) {
    unsigned bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
}
__device__ inline unsigned pair(float first, float second, float16) {
#if __CUDA_ARCH__ >= 800
    unsigned bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
#else
    return to_float16(first) | unsigned(to_float16(second)) << 16;
#endif
}

/* c += a b, of a (16 × 16) and b (16 × 8). volatile: all threads of the warp do it together, so the compiler may not
   move it to where only some of them come. */
__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bfloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#if __CUDA_ARCH__ >= 800
__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, float16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else

/* c += a b, of a (16 × 8) and b (8 × 8), as Turing's tensor cores have it. */
__device__ inline void multiply_half(float (&c)[4], unsigned a0, unsigned a1, unsigned b, float16) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b));
}
#endif

/* Four matrices of 8 × 8 from shared memory. Thread n names row n % 8 of matrix n/8, 16 aligned bytes; of each
   matrix it gets of row lane/4 the numbers 2 (lane % 4) and the next, or transposed, of that column. */
__device__ inline void load_matrices(unsigned (&m)[4], const void* row) {
    const unsigned place = __cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(place) : "memory");
}
__device__ inline void load_matrices_transposed(unsigned (&m)[4], const void* row) {
    const unsigned place = __cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(place) : "memory");
}

/* From global to shared memory while the thread goes on; zeros if not `there`. Done when it has waited for its
   copies, for others once they have met. Addresses are multiples of as many bytes. (PTX ISA, "cp.async".) */
#if __CUDA_ARCH__ >= 800
__device__ inline void copy_16_bytes(void* to, const void* from, bool there) {
    const unsigned place = __cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(place), "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0) : "memory");
}
__device__ inline void copy_4_bytes(void* to, const void* from, bool there) {
    const unsigned place = __cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(place), "l"(__cvta_generic_to_global(from)), "r"(there ? 4 : 0) : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#else                                                              /* Turing waits */
__device__ inline void copy_16_bytes(void* to, const void* from, bool there) {
    *static_cast<uint4*>(to) = there ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
}
__device__ inline void copy_4_bytes(void* to, const void* from, bool there) {
    *static_cast<unsigned*>(to) = there ? *static_cast<const unsigned*>(from) : 0;
}
__device__ inline void wait_for_copies() {}
#endif
#endif

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, float16) {
    multiply_half(c, a[0], a[1], b0, float16());
    multiply_half(c, a[2], a[3], b1, float16());
}
#endif
