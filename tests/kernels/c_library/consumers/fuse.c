/* Fuses a ramp with a reversed one and prints the version and the sum of the levels. */
#include <refusion_edge.h>
#include <stdio.h>

int main(int count, char **words) {
    static unsigned char a[16 * 20], b[16 * 20], fused[16 * 20];
    for (int i = 0; i < 16 * 20; ++i) a[i] = (unsigned char)(i * 37), b[i] = (unsigned char)(255 - i);
    refusion_edge *engine = count == 2 ? refusion_edge_create(words[1], 0, REFUSION_EDGE_FP32) : NULL;
    const refusion_edge_plane planes[] = {
        {a, 20, REFUSION_EDGE_UINT8, 0, 0}, {b, 20, REFUSION_EDGE_UINT8, 0, 0}, {fused, 20, REFUSION_EDGE_UINT8, 0, 0}};
    int code = refusion_edge_fuse_planes(engine, &planes[0], &planes[1], 16, 20, 0, &planes[2]);
    long sum = 0;
    refusion_edge_destroy(engine);
    if (code != REFUSION_EDGE_OK) return fprintf(stderr, "%s\n", refusion_edge_error()), code;
    for (int i = 0; i < 16 * 20; ++i) sum += fused[i];
    printf("%s %ld\n", refusion_edge_version(), sum);
    return 0;
}
