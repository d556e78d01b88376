/* A CUDA runtime that says yes: one device, no computation. Enough for torch's autograd, streams and events. */
#include <driver_types.h>
#include <stdlib.h>
#include <string.h>

#define OK return cudaSuccess

/* FAKE_CUDA_DRIVER=11040: a driver of that version, which is too old for this runtime. */
static int driver(void) { const char *version = getenv("FAKE_CUDA_DRIVER"); return version ? atoi(version) : 0; }

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return driver() ? cudaErrorInsufficientDriver : cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; OK; }
cudaError_t cudaSetDevice(int device) { OK; }
cudaError_t cudaGetLastError(void) { OK; }
cudaError_t cudaPeekAtLastError(void) { OK; }
cudaError_t cudaDriverGetVersion(int *version) { *version = driver() ? driver() : 13020; OK; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13020; OK; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; OK; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "fake H100");
  p->major = 9;
  p->totalGlobalMem = 80ULL << 30;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxThreadsPerBlock = 1024;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = 50 << 20;
  OK;
}
cudaError_t cudaDeviceSynchronize(void) { OK; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { *event = (cudaEvent_t)malloc(8); OK; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { OK; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { OK; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { OK; }
cudaError_t cudaEventQuery(cudaEvent_t event) { OK; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { OK; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { OK; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { OK; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { OK; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  OK;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  *stream = (cudaStream_t)malloc(8);
  OK;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) { *available = *total = 80ULL << 30; OK; }
cudaError_t cudaMalloc(void **p, size_t size) { *p = malloc(size); OK; }
cudaError_t cudaFree(void *p) { OK; }
cudaError_t cudaHostAlloc(void **p, size_t size, unsigned flags) {
  *p = aligned_alloc(4096, (size + 4095) & ~4095UL);
  OK;
}
cudaError_t cudaFreeHost(void *p) { free(p); OK; }
cudaError_t cudaHostRegister(void *p, size_t size, unsigned flags) { OK; }
