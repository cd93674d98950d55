"""Races, barriers and branches: what threads do to each other, and what they may."""

import pytest
import torch

from emulation.ptx_kernels import COPY, launch, refused


class TestRaces:
    ALL_WRITE = "st.global.u32 [%a1], %r3;"

    def test_two_threads_write(self):
        refused("race: write of what another thread writes", self.ALL_WRITE)

    def test_threads_of_two_ctas_write(self):
        refused("race: write of what another thread writes", f"setp.eq.u32 %p0, %r0, 0; @%p0 {self.ALL_WRITE}")

    def test_one_thread_writes_twice(self):
        launch(f"setp.eq.u32 %p0, %r3, 0; @%p0 {self.ALL_WRITE} @%p0 {self.ALL_WRITE}")

    def test_overlapping_writes_of_different_sizes(self):
        body = """
            setp.eq.u32 %p0, %r3, 0; mov.b32 {%h1, %h2}, %r3;
            @%p0 st.global.u32 [%a1], %r3; @!%p0 add.s64 %a4, %a4, 2; @!%p0 st.global.u16 [%a4+-4], %h1;
        """
        refused("race: write of what another thread writes", body, grid=1, block=2)

    def test_neighbouring_halves_of_a_word(self):
        body = "mov.b32 {%h1, %h2}, %r3; mul.wide.u32 %a2, %r3, 2; add.s64 %a4, %a1, %a2; st.global.u16 [%a4], %h1;"
        y = launch(body)[1]
        assert y.view(torch.int16)[:128].tolist() == list(range(128))

    NEIGHBOUR = "xor.b32 %r5, %r3, {}; mul.wide.u32 %a5, %r5, 4; add.s64 %a5, %a0, %a5; "

    def test_read_of_what_another_has_written(self):
        body = self.NEIGHBOUR.format(1) + "st.global.u32 [%a3], %r3; ld.global.u32 %r4, [%a5];"
        refused("race: read of what another thread writes", body)

    def test_write_of_what_another_has_read(self):
        body = self.NEIGHBOUR.format(1) + "ld.global.u32 %r4, [%a5]; st.global.u32 [%a3], %r4;"
        refused("race: write of what another thread reads", body)

    def test_write_of_what_many_have_read(self):
        body = "ld.global.u32 %r4, [%a0]; setp.eq.u32 %p0, %r3, {}; @%p0 st.global.u32 [%a0], %r4;"
        refused("race: write of what another thread reads", body.format(0), grid=1)
        refused("race: write of what another thread reads", body.format(127))

    def test_in_place_by_the_same_thread(self):
        x, _ = launch("ld.global.u32 %r4, [%a3]; add.u32 %r4, %r4, 1; st.global.u32 [%a3], %r4;")
        assert x.tolist() == list(range(1, 129))

    def test_all_read_the_same(self):
        y = launch("ld.global.u32 %r4, [%a0+20]; st.global.u32 [%a4], %r4;")[1]
        assert (y == 5).all()

    EXCHANGE = "ld.global.u32 %r4, [%a5]; {} st.global.u32 [%a3], %r4;"

    def test_exchange_within_a_cta_needs_a_barrier(self):
        body = self.NEIGHBOUR.format(33) + self.EXCHANGE
        refused("race: write of what another thread reads", body.format(""))
        x, _ = launch(body.format("bar.sync 0;"))
        assert x.tolist() == [n ^ 33 for n in range(128)]

    def test_two_exchanges_need_two_barriers(self):
        once = self.NEIGHBOUR.format(33) + self.EXCHANGE.format("bar.sync 0;")
        refused("race: read of what another thread writes", once + once)
        x, _ = launch(once + "bar.sync 0;" + once)
        assert x.tolist() == list(range(128))

    def test_write_after_a_barrier_of_what_all_have_read(self):
        body = "ld.global.u32 %r4, [%a0]; bar.sync 0; setp.eq.u32 %p0, %r3, {}; @%p0 st.global.u32 [%a0], %r4;"
        launch(body.format(3), grid=1)
        refused("race", body.format(3), grid=2)
        refused("race", body.format(67), grid=2)

    def test_read_and_write_after_a_barrier_of_what_all_have_read(self):
        body = """
            ld.global.u32 %r4, [%a0]; bar.sync 0; setp.eq.u32 %p0, %r3, 3;
            @%p0 ld.global.u32 %r4, [%a0]; @%p0 st.global.u32 [%a0], %r4;
        """
        launch(body, grid=1)

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("ld.global.u32 %r4, [%a5];", "st.global.u32 [%a3], %r3;"),
            ("st.global.u32 [%a3], %r3;", "ld.global.u32 %r4, [%a5];"),
            ("st.global.u32 [%a3], %r3;", "st.global.u32 [%a5], %r3;"),
        ],
    )
    def test_barriers_do_not_order_ctas(self, before, after):
        refused("race", self.NEIGHBOUR.format(64) + before + "bar.sync 0;" + after)
        launch(self.NEIGHBOUR.format(1) + before + "bar.sync 0;" + after)


class TestSharedMemory:
    SYMBOL = ".extern .shared .align 16 .b8 shared[];"
    EXCHANGE = """
        mov.u32 %r5, shared; shl.b32 %r6, %r0, 2; add.s32 %r6, %r5, %r6; xor.b32 %r7, %r0, 33; shl.b32 %r7, %r7, 2;
        add.s32 %r7, %r5, %r7; ld.global.u32 %r4, [%a3]; st.shared.u32 [%r6], %r4; {}
        ld.shared.u32 %r4, [%r7]; st.global.u32 [%a4], %r4;
    """

    def test_exchange_with_a_barrier(self):
        _, y = launch(self.EXCHANGE.format("bar.sync 0;"), shared=self.SYMBOL, shared_bytes=256)
        assert y.tolist() == [n ^ 33 for n in range(128)]

    def test_exchange_without(self):
        refused("race: read of what another", self.EXCHANGE.format(""), shared=self.SYMBOL, shared_bytes=256)

    @pytest.mark.parametrize("given", [0, 252])
    def test_no_more_than_was_asked_for(self, given):
        refused("shared memory has", self.EXCHANGE.format("bar.sync 0;"), shared=self.SYMBOL, shared_bytes=given)

    def test_static_variables(self):
        body = ".shared .align 4 .b8 shared[256]; " + self.EXCHANGE.format("bar.sync 0;")
        assert launch(body, shared_bytes=256)[1].tolist() == [n ^ 33 for n in range(128)]
        refused("256 bytes of shared memory, more than 0", body)


class TestShuffles:
    SHUFFLE = "ld.global.u32 %r4, [%a3]; shfl.sync.bfly.b32 %r5, %r4, {}, {}, {}; st.global.u32 [%a4], %r5;"

    @pytest.mark.parametrize("step", [0, 1, 2, 7, 16, 31])
    def test_butterfly(self, step):
        assert launch(self.SHUFFLE.format(step, 31, -1))[1].tolist() == [n ^ step for n in range(128)]

    @pytest.mark.parametrize("step", [1, 16])
    def test_numbers_in_registers_and_a_predicate(self, step):
        """As nvcc writes it."""
        body = f"""
            ld.global.u32 %r4, [%a3]; mov.b32 %r6, {step}; mov.b32 %r7, 31; mov.b32 %r8, -1;
            shfl.sync.bfly.b32 %r5|%p0, %r4, %r6, %r7, %r8; @!%p0 mov.b32 %r5, 999; st.global.u32 [%a4], %r5;
        """
        assert launch(body)[1].tolist() == [n ^ step for n in range(128)]

    def test_the_same_value_of_all(self):
        body = "mov.b32 %r4, 7; shfl.sync.bfly.b32 %r5, %r4, 1, 31, -1; st.global.u32 [%a4], %r5;"
        assert launch(body)[1].tolist() == [7] * 128

    def test_of_some_warps(self):
        body = f"setp.ge.u32 %p0, %r0, 32; @%p0 bra $END; {self.SHUFFLE.format(3, 31, -1)} $END:"
        assert launch(body)[1].view(2, 64).tolist() == [
            [64 * cta + n ^ 3 if n < 32 else 0 for n in range(64)] for cta in range(2)
        ]

    @pytest.mark.parametrize("where", ["%r0, 31", "%r0, 40"])
    def test_a_part_of_a_warp_is_refused(self, where):
        body = f"setp.ge.u32 %p0, {where}; @%p0 bra $END; {self.SHUFFLE.format(3, 31, -1)} $END:"
        refused("a part of a warp", body)

    def test_a_guard_is_a_part_of_a_warp(self):
        body = "mov.b32 %r4, 7; setp.ge.u32 %p0, %r0, 31; @%p0 shfl.sync.bfly.b32 %r5, %r4, 1, 31, -1;"
        refused("a part of a warp", body)

    @pytest.mark.parametrize(
        ("step", "last", "members"), [(32, 31, -1), ("%r0", 31, -1), (1, 15, -1), (1, 31, "0x0000ffff"), (1, 31, "%r0")]
    )
    def test_other_forms_are_refused(self, step, last, members):
        refused("unknown form of a shuffle", self.SHUFFLE.format(step, last, members))


class TestControlFlow:
    def test_endless_loop(self):
        refused("endless loop", "$L: add.u32 %r3, %r3, 1; bra $L;", steps=1000)

    def test_loop_of_different_lengths(self):
        body = "mov.u32 %r4, 0; $L: add.u32 %r4, %r4, %r3; add.u32 %r5, %r4, 0; setp.lt.u32 %p0, %r4, 200; "
        body = "setp.eq.u32 %p1, %r3, 0; @%p1 bra $END; " + body + "@%p0 bra $L; st.global.u32 [%a4], %r4; $END: "
        y = launch(body)[1]
        assert y.tolist() == [0] + [-(-200 // n) * n for n in range(1, 128)]

    def test_branches_meet_again(self):
        body = """
            and.b32 %r4, %r3, 1; setp.eq.u32 %p0, %r4, 0; @%p0 bra $EVEN; mov.u32 %r5, 100; bra.uni $BOTH;
            $EVEN: mov.u32 %r5, 200; $BOTH: add.u32 %r5, %r5, %r3; bar.sync 0; st.global.u32 [%a4], %r5;
        """
        assert launch(body)[1].tolist() == [n + (100 if n % 2 else 200) for n in range(128)]

    def test_barrier_that_some_skip(self):
        refused("barrier deadlock", "setp.eq.u32 %p0, %r0, 3; @%p0 bra $L; bar.sync 0; $L:")

    def test_threads_at_two_barriers(self):
        refused("barrier deadlock", "setp.eq.u32 %p0, %r0, 3; @%p0 bra $L; bar.sync 0; bra $E; $L: bar.sync 0; $E:")

    def test_barrier_that_whole_ctas_skip(self):
        launch("setp.eq.u32 %p0, %r1, 1; @%p0 bra $L; bar.sync 0; $L: " + COPY)

    def test_other_barriers_are_refused(self):
        refused("unknown form of a barrier", "bar.sync 1;")
        refused("unknown form of a barrier", "bar.sync 0, 32;")

    @pytest.mark.parametrize("leave", ["ret", "exit"])
    def test_threads_leave_early(self, leave):
        y = launch(f"setp.ge.u32 %p0, %r3, 70; @%p0 {leave}; {COPY}")[1]
        assert y.tolist() == [*range(70), *[0] * 58]
