"""timm without torch's compiler: nothing of it is imported until it is used, and then it works."""

import subprocess
import sys
import textwrap

CODE = """
    import sys
    from embedcache.deferred import own_process, without_compiler

    own_process()
    with without_compiler():
        import torch
        import timm
        from timm.models.naflexvit import NaFlexRopeIterator
    assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
    assert not [one for one in sys.meta_path if type(one).__module__ == "embedcache.deferred"]

    import torchvision
    boxes = torch.tensor([[0, 0.0, 0, 4, 4]])
    assert torchvision.ops.roi_align(torch.rand(1, 3, 8, 8), boxes, 2).shape == (1, 3, 2, 2)
    doubled = torch.compile(lambda x: 2 * x, backend="eager")
    assert doubled(torch.ones(2)).tolist() == [2, 2]
    import torch._dynamo.utils
    assert type(torch._dynamo).__name__ == "module"
    assert torch._dynamo.config.recompile_limit > 0
    assert callable(torch._dynamo.utils.is_compile_supported)
    assert callable(NaFlexRopeIterator.__next__)
"""
USED_EARLY = """
    import sys, torch
    from embedcache.deferred import own_process, without_compiler

    own_process()
    with without_compiler():
        from torch._dynamo import config
        from torch._dynamo.utils import is_compile_supported
        assert not [name for name in sys.modules if name == "torch._dynamo.eval_frame"]
        {use}
        assert "torch._dynamo.eval_frame" in sys.modules
        import torch._dynamo.utils as again
        assert again.is_compile_supported is not is_compile_supported
    assert type(sys.modules["torch._dynamo"]).__name__ == "module"
    assert config.recompile_limit == torch._dynamo.config.recompile_limit
"""
DISABLED = """
    import sys, torch
    from embedcache.deferred import own_process, without_compiler

    own_process()
    with without_compiler():
        @torch.compiler.disable
        def twice(x, *, of=2):
            "Doubles."
            return of * x
    assert "torch._dynamo" not in sys.modules
    assert twice.__doc__ == "Doubles."
    assert twice(3) == 6 and twice(3, of=3) == 9
    assert "torch._dynamo" in sys.modules
    with without_compiler():  # it is here already
        from torch._dynamo.utils import is_compile_supported
    assert type(is_compile_supported).__name__ == "function"
"""


def check(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_timm_comes_without_the_compiler_which_works_once_it_is_used() -> None:
    check(CODE)


def test_whoever_calls_it_or_asks_for_its_settings_meanwhile_gets_the_real_one() -> None:
    for use in ("is_compile_supported('cpu')", "config.recompile_limit", "config.verbose = False"):
        check(USED_EARLY.replace("{use}", use))


def test_a_function_that_is_decorated_meanwhile_is_disabled_at_its_first_call() -> None:
    check(DISABLED)


def test_where_embedcache_is_a_library_nothing_is_put_off() -> None:
    check(
        """
        import sys
        from embedcache.deferred import without_compiler
        with without_compiler():
            import torchvision
        assert "torch._dynamo.eval_frame" in sys.modules
        """
    )
