"""The job on a Ray cluster of several nodes of this machine: the bytes of the local engine, also with a node lost."""

import os
import threading
from functools import partial

import pytest

from embedserve import Encoder
from embedserve.errors import EmbedserveError, InputError
from indexing import Document
from indexing.collections.catalog import collection_path
from indexing.jobs.job import JobOptions, job_path, run_job
from tests import tiny
from tests.indexing.bag import BagEncoder, make_documents
from tests.indexing.job_child import load_bag, load_dying_bag, load_slow_bag

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'embedserve[ray]'")
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SMALL = JobOptions(shard_size=10)
STORE = 100 * 2**20  # bytes of the object store of a node


@pytest.fixture(scope="module")
def cluster():
    """A head that computes nothing, and two nodes of one core."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # on loopback alone
    os.environ.setdefault("RAY_worker_niceness", "0")  # workers are nice by default, and starve beside other tests
    about = {"object_store_memory": STORE, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **about})
    nodes = [found.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
    ray.init(address=found.address, log_to_driver=False)
    found.wait_for_nodes()
    yield found, nodes
    ray.shutdown()
    found.shutdown()


def shards_of(work):
    files = sorted(path for path in (work / "shards").rglob("*") if path.is_file())
    return {path.relative_to(work): path.read_bytes() for path in files}


def load_tiny(folder, device):
    return Encoder.load(folder, device)


def test_actors_make_the_bytes_of_the_local_engine(cluster, data_dir, tiny_llama):
    from indexing.jobs.ray_engine import RayEngine

    encoder = Encoder.load(tiny_llama, "cpu")
    documents = [Document(f"d{n}", tiny.SENTENCES[n % 9], "", {"n": n}) for n in range(45)]
    local, remote = job_path(data_dir, "local"), job_path(data_dir, "remote")
    run_job(documents, encoder, collection_path(data_dir, "local"), local, SMALL)
    engine = RayEngine(partial(load_tiny, str(tiny_llama)), 2)
    report = run_job(documents, encoder, collection_path(data_dir, "remote"), remote, SMALL, engine=engine)
    assert (report.engine, report.documents, report.shards, report.resumed) == ("ray", 45, 5, 0)
    assert shards_of(remote) == shards_of(local)
    again = run_job(
        documents, encoder, collection_path(data_dir, "remote"), remote, SMALL, engine=RayEngine(load_bag, 1)
    )
    assert again.resumed == 5


def test_another_encoder_in_an_actor_is_refused(cluster, data_dir, tiny_llama):
    from indexing.jobs.ray_engine import RayEngine

    encoder = Encoder.load(tiny_llama, "cpu")
    with pytest.raises(EmbedserveError, match="a worker has another encoder than the job"):
        run_job(make_documents(20), encoder, collection_path(data_dir, "docs"), job_path(data_dir, "docs"), SMALL,
                engine=RayEngine(load_bag, 1))  # fmt: skip


def test_a_shard_that_ends_every_actor_ends_the_job(cluster, data_dir):
    from indexing.jobs.ray_engine import RayEngine

    engine = RayEngine(load_dying_bag, 1)
    with pytest.raises(EmbedserveError, match="4 encoder actors died on the same shard"):
        run_job(make_documents(95), BagEncoder(), collection_path(data_dir, "docs"), job_path(data_dir, "docs"), SMALL,
                engine=engine)  # fmt: skip
    assert engine.lost >= 4


def test_a_node_lost_in_the_middle_is_survived(cluster, data_dir):
    """The last test: it takes a node away."""
    from indexing.jobs.ray_engine import RayEngine

    found, nodes = cluster
    engine = RayEngine(load_slow_bag, 2)
    lost = threading.Event()

    def lose_one(progress):
        if progress.stage == "encode" and progress.done >= 30 and not lost.is_set():
            lost.set()
            found.remove_node(nodes[0], allow_graceful=False)

    local, remote = job_path(data_dir, "local"), job_path(data_dir, "remote")
    run_job(make_documents(200), BagEncoder(), collection_path(data_dir, "local"), local, SMALL)
    report = run_job(make_documents(200), BagEncoder(), collection_path(data_dir, "remote"), remote, SMALL,
                     engine=engine, progress=lose_one)  # fmt: skip
    assert lost.is_set()
    assert engine.lost >= 1
    assert (report.documents, report.shards, report.resumed) == (200, 20, 0)
    assert shards_of(remote) == shards_of(local)


def test_without_room_for_an_actor_the_job_ends(cluster, data_dir):
    from indexing.jobs.ray_engine import RayEngine

    with pytest.raises(InputError, match="replicas must be at least 1"):
        RayEngine(load_bag, 0)
    engine = RayEngine(load_bag, 1, "cuda", patience_s=3)
    with pytest.raises(EmbedserveError, match="the cluster has no room for one"):
        run_job(make_documents(5), BagEncoder(), collection_path(data_dir, "docs"), job_path(data_dir, "docs"),
                engine=engine)  # fmt: skip
