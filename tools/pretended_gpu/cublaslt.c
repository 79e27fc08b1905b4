/* cuBLASLt without a GPU: descriptions of products are looked into, and nothing is computed. Numbers and sizes
   are those of cublasLt.h. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 7, COMPUTE_32F = 68, R_32F = 0, EPILOGUE = 7, BIAS_POINTER = 8, EPILOGUE_BIAS = 4 };
enum { MAX_WORKSPACE = 1, REDUCTIONS = 3, ALIGNMENT_OF_A = 5, ALIGNMENT_OF_D = 8, PACK = 16 };
typedef struct { int epilogue; const void *bias; } Operation;
typedef struct { int type; uint64_t rows, columns; int64_t apart; } Layout;
typedef struct { uint64_t workspace; uint32_t reductions, aligned[4]; } Preference;
typedef struct { uint64_t algorithm[8]; size_t workspace; int status; float waves; int reserved[4]; } Choice;

int cublasLtCreate(void **handle) { *handle = malloc(1); return SUCCESS; }

int cublasLtMatmulDescCreate(Operation **made, int compute, int scale) {
    *made = calloc(1, sizeof **made);
    return compute == COMPUTE_32F && scale == R_32F ? SUCCESS : INVALID_VALUE;
}
int cublasLtMatmulDescSetAttribute(Operation *of, int name, const void *value, size_t size) {
    if (name == EPILOGUE && size == 4) memcpy(&of->epilogue, value, size);
    else if (name == BIAS_POINTER && size == 8) memcpy(&of->bias, value, size);
    else return INVALID_VALUE;
    return SUCCESS;
}
int cublasLtMatrixLayoutCreate(Layout **made, int type, uint64_t rows, uint64_t columns, int64_t apart) {
    *made = malloc(sizeof **made);
    **made = (Layout){type, rows, columns, apart};
    return rows && columns && apart >= (int64_t)rows ? SUCCESS : INVALID_VALUE;
}
int cublasLtMatmulPreferenceCreate(Preference **made) { *made = calloc(1, sizeof **made); return SUCCESS; }
int cublasLtMatmulPreferenceDestroy(Preference *made) { free(made); return SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(Preference *of, int name, const void *value, size_t size) {
    if (name == MAX_WORKSPACE && size == 8) memcpy(&of->workspace, value, size);
    else if (name == REDUCTIONS && size == 4) memcpy(&of->reductions, value, size);
    else if (name >= ALIGNMENT_OF_A && name <= ALIGNMENT_OF_D && size == 4)
        memcpy(&of->aligned[name - ALIGNMENT_OF_A], value, size);
    else return INVALID_VALUE;
    return SUCCESS;
}

/* op(A) op(B) of no transposed matrix, of one type. */
static int fits(const Layout *a, const Layout *b, const Layout *c, const Layout *d) {
    return a->columns == b->rows && d->rows == a->rows && d->columns == b->columns && c->rows == d->rows
        && c->columns == d->columns && a->type == b->type && a->type == d->type && c->type == d->type;
}
int cublasLtMatmulAlgoGetHeuristic(void *handle, Operation *of, Layout *a, Layout *b, Layout *c, Layout *d,
                                   Preference *preferred, int asked, Choice *choice, int *found) {
    if (of->epilogue != EPILOGUE_BIAS || asked != 1 || !fits(a, b, c, d)) return INVALID_VALUE;
    for (int n = 0; n < 4; n++) choice->algorithm[n] = preferred->aligned[n];
    choice->algorithm[4] = preferred->aligned[3] > PACK ? preferred->aligned[3] : PACK;      /* of the bias */
    choice->workspace = preferred->workspace;
    choice->status = SUCCESS;
    *found = 1;
    return SUCCESS;
}
int cublasLtMatmul(void *handle, Operation *of, const float *alpha, const void *a, Layout *of_a, const void *b,
                   Layout *of_b, const float *beta, const void *c, Layout *of_c, void *d, Layout *of_d,
                   const Choice *choice, void *workspace, size_t size, void *stream) {
    const void *places[] = {a, b, c, d, of->bias};
    for (int n = 0; n < 5; n++)
        if (!places[n] || (uint64_t)places[n] % choice->algorithm[n]) return INVALID_VALUE;
    return *alpha == 1 && *beta == 0 && c == d && fits(of_a, of_b, of_c, of_d) && workspace
        && size >= choice->workspace ? SUCCESS : INVALID_VALUE;
}
