"""Whether the official client gets along with `polypaca serve`: check_openai_client.py URL MODEL..."""
import asyncio
import sys

import openai


async def main(url, models):
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    assert [model.id async for model in client.models.list()] == models

    async def one(number):
        """Every fourth hangs up in the middle of its answer; the others read on to the usage."""
        stream = await client.chat.completions.create(
            model=models[number % len(models)], messages=[{"role": "user", "content": f"Name sea {number}."}],
            stream=True, temperature=0, max_tokens=200, stream_options={"include_usage": True})
        chunks = []
        async for chunk in stream:
            chunks.append(chunk)
            if number % 4 == 0 and len(chunks) == 3:
                await stream.close()
                return
        assert chunks[-1].usage.completion_tokens > 0, chunks[-1]

    await asyncio.gather(*(one(number) for number in range(64)))
    hello = [{"role": "user", "content": "Hello"}]
    for wanted, arguments in [
        (404, {"model": "unknown", "messages": hello}),
        (400, {"model": models[0], "messages": hello, "max_tokens": 10**6}),
        (413, {"model": models[0], "messages": [{"role": "user", "content": "x" * (10 << 20)}]}),
    ]:
        try:
            await client.chat.completions.create(**arguments)
        except openai.APIStatusError as error:
            assert error.status_code == wanted, error
        else:
            raise AssertionError(f"expected status {wanted}")
    print("openai", openai.__version__, "agrees")


asyncio.run(main(sys.argv[1], sys.argv[2:]))
